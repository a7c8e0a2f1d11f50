"""A probe: what the frozen features of a network are worth on a small labelled set, by k-NN and a linear classifier."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli import __version__
from kdcli.data.build import build_loader
from kdcli.data.digest import listing_of
from kdcli.data.loaders import Loader
from kdcli.disk import is_file
from kdcli.errors import KdError
from kdcli.failures import doing
from kdcli.models.weight_files import read_weights, save_safetensors
from kdcli.spec.schema import Probe as ProbeSpec
from kdcli.tasks.probe.classifiers import linear_probe, nearest_classes
from kdcli.tasks.probe.data import PROBE, ProbeData
from kdcli.tasks.probe.features import PooledFeature

LINEAR, NEAREST = "probe_top1", "knn_top1"
"""The metrics: top-1 in percent on the probe's test images, of the linear classifier and of k-NN."""

Pixels = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedNetwork:
    """A network to probe, in evaluation mode. pixels: from the student's to its own.

    weights: a digest of them, for a network that does not change; None for one that does.
    """

    name: str
    net: nn.Module
    pixels: Pixels | None = None
    autocast: torch.autocast | None = None
    weights: str | None = None

    def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with this network's pixels."""
        return batch if self.pixels is None else {**batch, "image": self.pixels(batch["image"])}


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics of one network. feature: which was read. messages: what is doubtful. seconds: of features, of fits."""

    metrics: dict[str, float]
    feature: str
    messages: tuple[str, ...]
    seconds: tuple[float, float]


@dataclass(slots=True)
class _Side:
    """One side's images as they were first read, in an order of their own: by class, then by their pixels.

    Whatever order the data lists them in, the same images give the same folds, sums and figures. labels: in that order;
    order: from the loader's to it; digest: of pixels and classes.
    """

    loader: Loader
    count: int
    labels: Tensor | None = None
    order: Tensor | None = None
    digest: str = ""

    def note(self, labels: Tensor, marks: list[bytes]) -> None:
        """Take what was read first: the class of each image, and a digest of its pixels."""
        numbers = labels.tolist()
        order = sorted(range(len(numbers)), key=lambda place: (numbers[place], marks[place]))
        self.order = torch.tensor(order, dtype=torch.int64)
        self.labels = labels[self.order]
        digest = hashlib.blake2b(repr(self.loader.facts.class_names).encode(), digest_size=16)
        for place in order:
            digest.update(marks[place] + numbers[place].to_bytes(4, "little"))
        self.digest = digest.hexdigest()


class Probe:
    """Measures networks on a labelled set; the images are read anew each time, features of frozen networks kept.

    folder: where features of networks that do not change are kept; None keeps none. device: where networks run.
    listing: a digest of names, labels and sizes of its images.
    """

    def __init__(
        self,
        settings: ProbeSpec,
        data: ProbeData,
        *,
        seed: int,
        device: torch.device,
        folder: Path | None = None,
    ) -> None:
        self.settings, self.data, self.device, self.folder = settings, data, device, folder
        on_cuda = device.type == "cuda"
        self.train, self.test = (
            _Side(build_loader(side, seed=seed, on_cuda=on_cuda), len(side.source))
            for side in (data.train, data.test)
        )
        listings = [listing_of(side).text() for side in (data.train, data.test)]
        self.listing = hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in listings)).hexdigest()

    def close(self) -> None:
        """End the data workers."""
        for side in (self.train, self.test):
            side.loader.close()

    def measure(self, network: ProbedNetwork, stop: Callable[[], bool] = lambda: False) -> Measured | None:
        """The metrics of a network; None where `stop`, asked at each batch, says yes."""
        began = time.perf_counter()
        with doing(f"probing {network.name}"):
            sample = self._on_device(next(self.train.loader.batches(0)))
            with network.autocast or nullcontext():
                feature = PooledFeature(
                    network.net,
                    self.settings.feature_of(network.name),
                    network.batch(sample),
                    where=self.where(network.name),
                    name="the student" if network.name == "student" else network.name,
                )
            train = self._features(self.train, "train", network, feature, stop)
            test = None if train is None else self._features(self.test, "test", network, feature, stop)
            if train is None or test is None:
                return None
            read = time.perf_counter()
            metrics, messages = self._figures(network.name, train, test)
        ended = time.perf_counter()
        return Measured(metrics, feature.text, tuple(messages), (read - began, ended - read))

    def where(self, network: str) -> tuple[str | int, ...]:
        """The place in the spec of what it says of a network's feature."""
        if isinstance(self.settings.feature, dict) and network in self.settings.feature:
            return (*PROBE, "feature", network)
        return (*PROBE, "feature") if self.settings.feature_of(network) is not None else PROBE

    @property
    def text(self) -> str:
        """What it is made of, in a phrase."""
        classes = self.data.classes
        return f"{self.train.count:,} images of {classes} classes to learn from, {self.test.count:,} to measure on"

    def _features(
        self, side: _Side, word: str, network: ProbedNetwork, feature: PooledFeature, stop: Callable[[], bool]
    ) -> Tensor | None:
        """float32 [N, D] on the CPU in the side's order, from the network's file where that holds just these."""
        path = None
        if self.folder is not None and network.weights is not None:
            path = self.folder / f"probe_{network.name}_{word}.safetensors"
        # What a file was made of is compared with the images, so that these are read once in any case.
        if path is not None and side.order is not None:
            kept = _kept(path, self._key(network, feature, side))
            if kept is not None:
                return kept
        rows: list[Tensor] = []
        labels: list[Tensor] = []
        marks: list[bytes] = []
        for batch in side.loader.batches(0):
            if stop():
                return None
            if side.order is None:
                labels.append(batch["labels"])
                marks += [hashlib.blake2b(image.numpy().tobytes()).digest() for image in batch["image"]]
            with network.autocast or nullcontext():
                rows.append(feature(network.batch(self._on_device(batch))).cpu())
        if side.order is None:
            side.note(torch.cat(labels), marks)
        assert side.order is not None
        features = torch.cat(rows)[side.order]
        if path is not None:
            save_safetensors({self._key(network, feature, side): features}, path)
        return features

    def _key(self, network: ProbedNetwork, feature: PooledFeature, side: _Side) -> str:
        """What decides a network's features: its weights, its pixels, its precision, which layer, which images."""
        pixels = network.pixels
        said = [side.digest, network.weights, feature.text, self.device.type, torch.__version__, __version__]
        said.append(None if pixels is None else {name: str(value) for name, value in vars(pixels).items()})
        said.append(None if network.autocast is None else str(network.autocast.fast_dtype))
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def _figures(self, name: str, train: Tensor, test: Tensor) -> tuple[dict[str, float], list[str]]:
        """The metrics from both sides' features, and messages about features that are of no use."""
        assert self.train.labels is not None and self.test.labels is not None
        usable, answered = (one.isfinite().all(1) for one in (train, test))
        bad = int((~usable).sum() + (~answered).sum())
        messages = []
        if bad:
            messages.append(
                f"{name} gives features that are not finite for {bad:,} image{'s' if bad > 1 else ''} of the probe: "
                "left out where it learns, counted as wrong where it is measured"
            )
        known, labels = train[usable].to(self.device), self.train.labels[usable].to(self.device)
        asked, truth = test[answered].to(self.device), self.test.labels[answered].to(self.device)
        left = torch.bincount(labels.cpu(), minlength=1)
        if len(known) < 2 or int((left > 0).sum()) < 2 or not len(asked):
            return {LINEAR: 0.0, NEAREST: 0.0}, messages
        if bool((known == known[0]).all()):
            messages.append(
                f"{name} gives the same features for all images that the probe learns from: its figures are a guess"
            )
        # Fewer where images of a class were left out.
        folds = max(2, min(self.data.folds, int(left[left > 0].min())))
        classes = max(self.data.classes, int(labels.max()) + 1)
        linear = linear_probe(known, labels, asked, classes, folds=folds)
        near = nearest_classes(
            known, labels, asked, classes, k=self.settings.k, temperature=self.settings.temperature
        )
        count = len(self.test.labels)
        figures = {
            LINEAR: 100.0 * int((linear.classes == truth).sum()) / count,
            NEAREST: 100.0 * int((near == truth).sum()) / count,
        }
        return figures, messages

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }


def _kept(path: Path, key: str) -> Tensor | None:
    """The features in a file that was made for this key; None where it is missing, damaged or of another."""
    if not is_file(path):
        return None
    try:
        return read_weights(path).get(key)
    except KdError:
        return None
