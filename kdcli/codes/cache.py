"""Codes KD55x: the cache of what a teacher shows."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

CACHE: dict[str, Explanation] = {
    "KD550": Explanation(
        "a teacher that can't be cached",
        "A cache holds what a teacher shows of each sample. That must depend on the sample alone: not on the"
        " batch it comes in (batch statistics, mixup, cutmix, padding), and not on which process asks.",
        "wrong: teacher0: {mimic_name: logits, teacher_bn_mode: train, cache: {}}\n"
        "right: teacher0: {mimic_name: logits, cache: {}}",
    ),
    "KD551": Explanation(
        "caches of different views",
        "`views` says after how many epochs the augmentations come again. Student and teachers see the same"
        " pixels, so there is one number for all teachers.",
        "wrong: teacher0 with cache: {views: 2}, teacher1 with cache: {views: 4}\n"
        "right: cache: {views: 4} for both",
    ),
    "KD552": Explanation(
        "a cache that is too large",
        "What the jobs read of the teacher, times samples and views, takes more than `limit_gb` or than is"
        " free on the disk. Logits are small, feature maps are not.",
        "right: cache: {dtype: float16, topk: 20}\nor: cache: {limit_gb: 200, dir: /data/cache}",
    ),
    "KD553": Explanation(
        "a feature that has no row for each sample",
        "Each sample's part of a feature is stored by itself, so its first dimension must be the batch.",
        "wrong: a layer that returns [tokens, batch, channels]\nright: a layer that returns [batch, ...]",
    ),
    "KD554": Explanation(
        "a cache that can't be written",
        "The cache's folder can't be made, or its disk is full: nothing can be stored.",
        "right: cache: {dir: /data/cache}",
    ),
    "KD555": Explanation(
        "nothing to cache",
        "`kdcli cache` stores teachers whose part in a job says `cache`; this spec has none.",
        "right: teacher0: {mimic_name: logits, cache: {}}",
    ),
}
