"""Whether the data is the same as when a checkpoint was written, and how it differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.data.digest import (
    MISSING,
    Changes,
    Digest,
    Listing,
    Other,
    changes,
    listing_from,
    other_pixels,
    probed_ids,
    unpacked,
)
from kdcli.spec.places import GT_FILE, Places
from kdcli.spec.schema import Spec
from kdcli.training.run_folder import RunFolder

EXAMPLES = 3
"""So many names are told of each kind of change."""

LONGEST = 120
"""A longer name is told by its last characters."""

WHAT = {
    "train": "the training data is not what the checkpoint was trained on",
    "test": "the test data is not what the checkpoint was measured on",
}

PLACES = ("root", "meta_file", "image_dir", "gt_file")
"""Keys that say where data lies: with others its pixels may be the same."""


def truth_file(spec: Spec, places: Places) -> Path | None:
    """The evaluator's `gt_file`, where the spec gives one."""
    evaluator = spec.dataset.test.dataset.kwargs.evaluator
    named = None if evaluator is None else evaluator.kwargs.get("gt_file")
    return places.find(named, GT_FILE) if isinstance(named, str) else None


@dataclass(frozen=True, slots=True)
class Difference:
    """A side whose data has changed. message: in words; samples: how many there were, and are."""

    side: str
    message: str
    samples: tuple[int, int]


def differences(
    kept: Mapping[str, Any], digests: Mapping[str, Digest], folder: RunFolder, keys: Sequence[str]
) -> list[Difference]:
    """The sides whose data has changed. kept: the checkpoint's digests; folder: of the run that wrote it.

    keys: those of the spec that differ, apart from ones that decide nothing; pixels are compared where they are
    made as before.
    """
    found = []
    for side, digest in digests.items():
        before = kept[side]
        if before["listing"] != digest.listing:
            told = _of_lists(side, before["listing"], digest, folder)
        elif pixels_made_alike(side, keys):
            told = _of_pixels(before["probe"], digest)
        else:
            continue
        if told:
            samples = (int(before["samples"]), digest.samples)
            found.append(Difference(side, f"{WHAT[side]}: {', '.join(told)}", samples))
    return found


def pixels_made_alike(side: str, keys: Sequence[str]) -> bool:
    """Whether no differing key changes how an image of this side becomes pixels."""
    return not any(
        key in ("runtime.random_seed", "runtime.aligned")
        or (key.startswith(f"dataset.{side}.") and not _names_a_place(key))
        for key in keys
    )


def _names_a_place(key: str) -> bool:
    return [part for part in key.split(".") if not part.isdigit()][-1] in PLACES


def _of_lists(side: str, listing: str, digest: Digest, folder: RunFolder) -> list[str]:
    path = folder.samples(side, listing)
    before, now = _read(path, listing), unpacked(digest.packed)
    assert now is not None
    if before is None:
        return [f"its list of samples differs (the one before, {path}, is missing or damaged)"]
    new = listing_from(now)
    return _told(changes(before, new), before, new) or ["its list of samples differs"]


def _read(path: Path, listing: str) -> Listing | None:
    """The old list of samples; None where its file is missing or is another one."""
    try:
        text = unpacked(path.read_bytes())
        same = text is not None and hashlib.sha256(text).hexdigest() == listing
        return listing_from(text) if text is not None and same else None
    except (OSError, ValueError):
        return None


def _told(found: Changes, before: Listing, now: Listing) -> list[str]:
    """The difference in words; the order of the samples only where nothing else differs."""
    thing = "sample" if now.kind == "arrays" else "image"
    told = []
    if found.came:
        told.append(f"{_count(found.came, thing)} came ({_names(found.came)})")
    if found.went:
        told.append(f"{_count(found.went, thing)} went ({_names(found.went)})")
    if found.labels:
        several = len(found.labels) > 1
        if now.kind == "boxes":
            what = f"{'have' if several else 'has'} other boxes ({_names([o.name for o in found.labels])})"
        else:
            examples = [f"{_shown(o.name)} from {o.before} to {o.now}" for o in found.labels[:EXAMPLES]]
            what = f"changed {'their' if several else 'its'} label ({_list(examples, found.labels)})"
        told.append(f"{_count(found.labels, thing)} {what}")
    if found.contents:
        verb = "have" if len(found.contents) > 1 else "has"
        if now.kind == "arrays":
            what = f"other pixels ({_names([o.name for o in found.contents])})"
        else:
            what = f"another size ({_list(list(map(_resized, found.contents[:EXAMPLES])), found.contents)})"
        told.append(f"{_count(found.contents, thing)} {verb} {what}")
    if found.classes:
        told.append(_of_classes(before.classes or (), now.classes or ()))
    if found.truth and not told:
        told.append("the annotations that it is measured by are others")
    if found.reordered and not told:
        told.append("its samples come in another order")
    return told


def _of_classes(before: Sequence[str], now: Sequence[str]) -> str:
    came = [name for name in now if name not in set(before)]
    went = [name for name in before if name not in set(now)]
    told = [f"{_names(names)} {verb}" for names, verb in ((came, "came"), (went, "went")) if names]
    return f"of its classes {' and '.join(told)}" if told else "its classes come in another order"


def _of_pixels(kept: Any, digest: Digest) -> list[str]:
    places = other_pixels(kept, digest.probe)
    if places is None:
        return ["the images that were looked at have another size after the transforms, or can't be read"]
    if not places:
        return []
    assert digest.probe is not None
    text = unpacked(digest.packed)
    assert text is not None
    names, ids = listing_from(text).names, probed_ids(digest.samples)
    looked = f"{len(places)} of the {len(digest.probe)} images looked at"
    told = f"{looked} {'have' if len(places) > 1 else 'has'} other pixels"
    # A test sample that can't be read is left out of the probe: which is which is not known then.
    return [f"{told} ({_names([names[ids[p]] for p in places])})" if len(ids) == len(digest.probe) else told]


def _resized(other: Other) -> str:
    name = _shown(other.name)
    if other.now == MISSING:
        return f"{name} is missing"
    if other.before == MISSING:
        return f"{name} was missing"
    return f"{name} from {other.before} to {other.now} bytes"


def _count(found: Sequence[Any], thing: str) -> str:
    return f"{len(found):,} {thing}{'s' if len(found) != 1 else ''}"


def _names(names: Sequence[str]) -> str:
    return _list([_shown(name) for name in names[:EXAMPLES]], names)


def _list(examples: Sequence[str], all_: Sequence[Any]) -> str:
    return ", ".join(examples) + (", ..." if len(all_) > len(examples) else "")


def _shown(name: str) -> str:
    plain = name.encode("utf-8", "backslashreplace").decode()
    return f"`{plain if len(plain) <= LONGEST else '...' + plain[-LONGEST:]}`"
