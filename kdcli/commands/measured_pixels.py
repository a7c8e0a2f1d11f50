"""How a teacher's images were normalised, measured where its weights don't state it: what it answers best on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kdcli.commands.given_networks import GivenNetwork, Pixels
from kdcli.data.classification.image_folder import image_folder
from kdcli.data.draws import Draws
from kdcli.data.folders import ImageData
from kdcli.data.sources import BadSample
from kdcli.data.transforms.geometry import CenterCrop, Resize
from kdcli.errors import RunError
from kdcli.models.network import build_network
from kdcli.models.weights import load_weights
from kdcli.spec.places import HERE
from kdcli.waiting import say

IMAGENET = Pixels(
    size=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), by="ImageNet's mean and std"
)
CANDIDATES = (
    IMAGENET,
    Pixels(size=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), by="mean and std 0.5"),
    Pixels(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), by="pixels from 0 to 1"),
)
"""What the samples normalise by, the likeliest first."""

NO_DRAWS = Draws(0, 0, np.zeros(1, dtype=np.int64))
"""For transforms that draw nothing."""

ERRORS = 2
"""By so many standard errors of what chance gives a teacher must be better than chance."""

MOST_IMAGES = 200
BATCH = 20


def measured(
    teacher: GivenNetwork, data: ImageData, count: int, size: int, plugins: tuple[str, ...]
) -> Pixels:
    """The candidate with which the teacher names most of some training images rightly, said with all figures.

    Raises RunError KD865 where it is right no more often than by chance with each of them.
    """
    assert teacher.weights is not None
    modules = teacher.modules
    if teacher.whole and "num_classes" not in modules[0].kwargs and ":" not in modules[0].type:
        kwargs = {**modules[0].kwargs, "num_classes": teacher.classes}
        modules = (modules[0].model_copy(update={"kwargs": kwargs}),)
    net = build_network(modules, path=("teachers", "teacher0"), plugins=plugins)
    load_weights(net, teacher.weights)
    net.eval()
    kwargs = {"split": "train"} if data.train.split else {}
    images = image_folder(("dataset", "train"), HERE, root=str(data.train.root), **kwargs)
    assert images.labels is not None
    right = torch.zeros(len(CANDIDATES))
    seen, unread = 0, None
    chosen = range(0, len(images), max(1, len(images) // MOST_IMAGES))
    for first in range(0, len(chosen), BATCH):
        pixels, labels = [], []
        for index in chosen[first : first + BATCH]:
            try:
                image = images.read(index)
            except BadSample as error:
                unread = error
                continue  # told where the whole data is looked at
            pixels.append(CenterCrop(size=size)(Resize(size=size)(image[None], NO_DRAWS), NO_DRAWS)[0])
            labels.append(int(images.labels[index]))
        if not pixels:
            continue
        batch = torch.stack(pixels).float() / 255
        truth = torch.tensor(labels)
        seen += len(labels)
        for number, candidate in enumerate(CANDIDATES):
            mean, std = (torch.tensor(value)[:, None, None] for value in (candidate.mean, candidate.std))
            with torch.inference_mode():
                logits = net({"image": (batch - mean) / std})["logits"]
            right[number] += (logits.argmax(1) == truth).sum()
    if not seen:
        say(
            f"`{teacher.weights}` doesn't state how its images were normalised, and no image can be read: {unread}"
        )
        say(f"taken: {IMAGENET.by}")
        return replace(IMAGENET, size=size)
    shares = (100 * right / seen).tolist()
    best = max(range(len(CANDIDATES)), key=lambda number: shares[number])
    figures = ", ".join(f"{one.by} {share:.1f} %" for one, share in zip(CANDIDATES, shares, strict=True))
    chance = 1 / count
    if shares[best] <= 100 * (chance + ERRORS * (chance * (1 - chance) / seen) ** 0.5):
        raise RunError.of(
            "KD865",
            f"the teacher `{teacher.words}` names no more of {seen} training images rightly than chance does"
            f" ({100 / count:.1f} %): {figures}",
            "were its classes in another order than the folders, which count from 0 in alphabetical order, or was it"
            " trained on other classes or sizes? Rename the folders, or fine-tune the teacher on them: `kdcli init"
            " --from`",
        )
    say(
        f"`{teacher.weights}` doesn't state how its images were normalised; right of {seen} training images: {figures}"
        f"; taken: {CANDIDATES[best].by}"
    )
    return Pixels(size=size, mean=CANDIDATES[best].mean, std=CANDIDATES[best].std, by=CANDIDATES[best].by)
