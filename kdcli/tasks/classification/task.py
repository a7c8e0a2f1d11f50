"""Classification as a task: top-1 decides, chance is one in K."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdcli.data.facts import DataFacts
from kdcli.distill.trainee import DeployedStudent
from kdcli.errors import Diagnostic, RunError, SpecPath
from kdcli.models.heads import ClsPostProcess
from kdcli.models.network import Network
from kdcli.spec.check.labels import reads_labels
from kdcli.spec.places import Places
from kdcli.spec.plugins import mixes_labels
from kdcli.spec.schema import DataPart, LayoutSpec, ModuleSpec, Spec
from kdcli.tasks.classification.backbone import Backbone
from kdcli.tasks.classification.labels import ClassMatching
from kdcli.tasks.classification.metrics import (
    ClassificationMeter,
    HeadsMeter,
    LogitsAgreement,
    PredictionsReport,
)
from kdcli.tasks.task import (
    Agreement,
    Deployment,
    Kept,
    Matching,
    Portable,
    Report,
    Tensors,
    Uninformed,
    without_training_only,
)

POST_PROCESS = ModuleSpec(name="post_process", type="base_cls_postprocess")
"""What a student without a postprocess gets: cross entropy on its logits."""


class Classification:
    """The task of classifiers: measures `logits` against `labels`."""

    name = "classification"
    primary = by_chance = "top1"
    rehearses: Literal["fake", "real"] = "fake"
    own_size = False
    why_zero = "its own `loss_weight` is 0, or a ReLU of the student cuts everything off"

    def __init__(self, topk: Sequence[int] = (1, 5)) -> None:
        self.topk = tuple(topk) if 1 in topk else (1, *topk)
        self.agreement: Agreement | None = LogitsAgreement()
        self.matching: Matching | None = ClassMatching()
        self.kept: Kept | None = None
        self.deploy: Deployment | None = ClassifierDeployment(classification_sample)
        self.report: Report | None = PredictionsReport(self.meter)
        self.uninformed: Uninformed | None = GuessedClasses()

    def modules(self, spec: Spec) -> tuple[ModuleSpec, ...]:
        """`net`, with the implicit post-process where it has none; a network without a head has nothing to judge."""
        has_loss = any(module.type.endswith("_postprocess") or module.headless for module in spec.net)
        return spec.net if has_loss else (*spec.net, POST_PROCESS)

    def sample(
        self,
        part: DataPart | None,
        facts: DataFacts,
        *,
        channels: int = 3,
        modules: Iterable[ModuleSpec] = (),
        aligned: bool = False,
    ) -> dict[str, Any]:
        """`image`, `indices`; `labels` where the data has them, `mixed_labels` where it is mixed."""
        sample = classification_sample(part, facts, channels)
        heads = facts.heads or next(
            (len(m.kwargs["num_classes"]) for m in modules if isinstance(m.kwargs.get("num_classes"), list)),
            None,
        )
        if heads is not None:
            for key in ("labels", "mixed_labels"):
                if key in sample:
                    sample[key] = sample[key][:, None].repeat(1, heads, *[1] * (sample[key].ndim - 1))
        return sample

    def training_classes(self, spec: Spec, places: Places) -> dict[int, str] | None:
        """Nothing: only the training data itself says its classes."""
        return None

    def agree(
        self, spec: Spec, train: DataFacts | None, test: DataFacts | None, places: Places
    ) -> list[Diagnostic]:
        """Nothing: the classes of both sides are matched where the data is opened (kdcli.data.classes)."""
        return []

    def check_truth(self, spec: Spec, test: DataFacts, places: Places) -> list[Diagnostic]:
        """Nothing: the labels come with the images."""
        return []

    def fits(
        self, spec: Spec, outputs: Mapping[str, Any], train: DataFacts, test: DataFacts
    ) -> list[Diagnostic]:
        """KD419 where the logits are too few for a side's classes, or more than the training data's."""
        return list(logits_fit(spec, outputs, train, test))

    def meter(self, facts: DataFacts | None = None) -> ClassificationMeter | HeadsMeter:
        """A fresh meter for the spec's k, of each head where a sample has several labels."""
        if facts is not None and facts.heads is not None:
            return HeadsMeter(facts.heads, self.topk)
        return ClassificationMeter(self.topk)

    def answers(self, outputs: Mapping[str, Any]) -> bool:
        """Whether there are logits."""
        return "logits" in outputs

    def judges(self, outputs: Mapping[str, Any], facts: DataFacts, *, weights: bool) -> bool:
        """Whether it has logits, and the data's classes are known."""
        return bool(facts.num_classes) and self.answers(outputs)

    def chance(self, num_classes: int) -> float:
        """Top-1 of a network that guesses, in percent."""
        return 100.0 / num_classes

    def near_chance(self, metrics: Mapping[str, float], num_classes: int, samples: int) -> bool:
        """Within three standard errors of guessing, or below twice what guessing gives.

        False where the samples are too few to tell half of the way to perfect from guessing, or have no classes.
        """
        if not num_classes:
            return False
        share = 1.0 / num_classes
        error = 100.0 * math.sqrt(share * (1.0 - share) / max(samples, 1))
        if 3.0 * error > 0.5 * (100.0 - self.chance(num_classes)):
            return False
        return metrics[self.primary] <= max(
            self.chance(num_classes) + 3.0 * error, min(2.0 * 100.0 * share, 60.0)
        )


def logits_fit(
    spec: Spec, outputs: Mapping[str, Any], train: DataFacts, test: DataFacts
) -> Iterator[Diagnostic]:
    """KD543 where a side has no labels and they are read; KD418 where the sides' channels differ; KD419 where logits
    and classes are not as many.

    outputs: of the student, `logits` [B, K] among them. An error where a label would lie beyond the logits; too
    many logits are a warning. What is not known of the data is not compared.
    """
    for side, facts in (("train", train), ("test", test)):
        if facts.labels == "none" and (reads_labels(spec) if side == "train" else not spec.distils):
            yield Diagnostic(
                code="KD543",
                message=f"the {'training' if side == 'train' else 'test'} data has no labels",
                help="a classifier's task loss and accuracy need `labels` [B] in each batch"
                + ("; to distil without them say `task_loss: false` under `mimic`" if spec.distils else ""),
                path=("dataset", side, "dataset"),
            )
    if train.shape is not None and test.shape is not None and train.shape[0] != test.shape[0]:
        message = f"the student is trained on images of {train.shape[0]} channels, and the test images have"
        help = "let both be read alike: `color_mode` of the image reader, or the Dataset's own conversion"
        path: SpecPath = ("dataset", "test", "dataset")
        yield Diagnostic(code="KD418", message=f"{message} {test.shape[0]}", help=help, path=path)
    logits = outputs.get("logits")
    heads = len(logits) if isinstance(logits, (list, tuple)) else 1
    for side, facts in (("training", train), ("test", test)):
        labels = facts.heads or 1
        if "logits" in outputs and facts.labels == "classes" and labels != heads:
            yield Diagnostic(
                code="KD584",
                message=f"the student gives {heads} logits, and a sample of the {side} data has {labels} labels",
                help="`num_classes` and a sample's labels are lists of one length; of a one-hot row give its class",
                path=head_path(spec),
            )
            return
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return
    made = int(logits.shape[1])
    sides = [("training", train), ("test", test)]
    known = [(side, facts.num_classes) for side, facts in sides if facts.num_classes is not None]
    short = [(side, classes) for side, classes in known if made < classes]
    most = max((classes for _, classes in known), default=made)
    wide = [(side, classes) for side, classes in known if side == "training" and made > most]
    for side, classes in (short or wide)[:1]:
        facts = train if side == "training" else test
        from_one = bool(short) and facts.lowest_label == 1 and facts.class_names is None
        yield Diagnostic(
            code="KD419",
            severity="error" if short else "warning",
            message=f"the student gives {made} logits, and the {side} data has {classes} classes"
            + (f": its labels run from 1 to {classes - 1}" if from_one else ""),
            help=f"count labels from 0 on (`label - 1`); with `num_classes: {most}` class 0 would have no image"
            if from_one
            else f"write `num_classes: {most}`",
            path=head_path(spec),
        )


def head_path(spec: Spec) -> SpecPath:
    """Where the student's number of classes stands, or its network where it stands nowhere."""
    heads = [index for index, module in enumerate(spec.net) if "num_classes" in module.kwargs]
    return ("net", heads[-1], "kwargs", "num_classes") if heads else ("net",)


BATCH = 2

USUAL_SIZE = 224
"""Height and width where neither the spec nor the user says."""


def classification_sample(part: DataPart | None, facts: DataFacts, channels: int = 3) -> dict[str, Any]:
    """`image`, `indices`; `labels` where the data has them, `mixed_labels` where it is mixed.

    Fake under a fake mode, else real.
    """
    shape = facts.shape or (channels, USUAL_SIZE, USUAL_SIZE)
    batch: dict[str, Any] = {
        "image": torch.zeros(BATCH, *shape),
        "indices": torch.zeros(BATCH, dtype=torch.int64),
    }
    if facts.labels == "none":
        return batch
    batch["labels"] = torch.zeros(BATCH, dtype=torch.int64)
    mixing = None if part is None else part.dataloader.kwargs.batch_fn
    if mixing is not None and mixes_labels(mixing):
        classes = mixing.kwargs.get("num_classes", facts.num_classes or 1000)
        batch["mixed_labels"] = torch.full((BATCH, int(classes)), 1.0 / int(classes))
    return batch


class GuessedClasses:
    """The loss of a classifier that answers every image with how frequent the classes are."""

    loss_name = "loss"

    def targets(self, batch: Mapping[str, Any]) -> Tensor | None:
        """`mixed_labels` summed, else how many `labels` there are of each class up to the highest."""
        mixed = batch.get("mixed_labels")
        if isinstance(mixed, Tensor):
            return mixed.double().sum(0) if mixed.ndim == 2 else None
        labels = self.labels(batch)
        return None if labels is None else torch.bincount(labels)

    def labels(self, batch: Mapping[str, Any]) -> Tensor | None:
        """`labels`, where they are classes and nothing is mixed."""
        labels = batch.get("labels")
        if isinstance(batch.get("mixed_labels"), Tensor) or not isinstance(labels, Tensor):
            return None
        return None if labels.ndim != 1 or labels.is_floating_point() else labels

    def value(self, student: nn.Module, targets: Tensor, *, mixed: bool) -> float | None:
        """As the one `base_cls_postprocess` of the student computes it."""
        losses = [module for module in student.modules() if isinstance(module, ClsPostProcess)]
        if len(losses) != 1 or float(targets.sum()) <= 0:
            return None
        return losses[0].uninformed(targets / targets.sum(), mixed=mixed)


class Classifier(Portable):
    """image [B, C, H, W], normalised as in training -> logits [B, K]."""

    inputs = ("image",)
    outputs = ("logits",)

    def __init__(self, net: Network | DeployedStudent) -> None:
        super().__init__()
        if isinstance(net, Network):
            without_training_only(net)
        else:
            # Exporters can't leave a module midway; what comes after the tap is dead code to them.
            net.taps.require([net.tap], None)
        self.net = net
        self.width: int | None = None
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        logits = self.net({"image": image})["logits"]
        if isinstance(logits, (list, tuple)):
            raise RunError.of(
                "KD585",
                f"the student gives {len(logits)} logits, and an exported classifier has one",
                "export its weights alone: `--format safetensors`",
            )
        assert isinstance(logits, Tensor)
        return logits

    def eager(self, *inputs: Tensor) -> Tensors:
        """The logits."""
        logits = self.forward(*inputs)
        self.width = logits.shape[1]
        return (logits,)

    def class_names(self, facts: DataFacts) -> tuple[str, ...] | None:
        """One for each logit; raises RunError KD764 where there is another number of them."""
        names = facts.class_names
        if names is not None and self.width is not None and len(names) != self.width:
            raise RunError.of(
                "KD764",
                f"the student gives {self.width} logits, and its data has {len(names)} classes",
                "whoever reads the file would meet logits without a name: train with "
                f"`num_classes: {len(names)}`",
            )
        return names


class ClassifierDeployment:
    """Exports the classifier, and proves the file on the first batch of test images; sample: makes a batch up."""

    sized = False

    def __init__(self, sample: Callable[[DataPart, DataFacts], dict[str, Any]]) -> None:
        self.sample = sample

    def portable(self, net: Network | DeployedStudent, *, aligned: bool) -> Classifier:
        """The classifier."""
        return Classifier(net)

    def backbone(
        self,
        spec: Spec,
        net: Network | DeployedStudent,
        untrained: Sequence[str],
        stated: Mapping[str, LayoutSpec],
    ) -> Backbone:
        """The layers that the jobs name, in order, and the pooled vector."""
        assert isinstance(net, Network) and spec.mimic is not None
        taps = dict.fromkeys(tap for job in spec.mimic.jobs.values() for tap in job.student.mimic_name)
        return Backbone(net, list(taps), untrained, stated)

    def taken(self, batches: Iterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The first batch; a single image twice, since a batch of one would make exporters fix the size."""
        first = list(islice(batches, 1))
        if first and len(first[0]["image"]) == 1:
            return [{k: torch.cat([v, v]) if isinstance(v, Tensor) else v for k, v in first[0].items()}]
        return first

    def made_up(self, spec: Spec, facts: DataFacts, size: tuple[int, int] | None) -> list[Mapping[str, Any]]:
        """Two images of random pixels."""
        batch = self.sample(spec.dataset.test, facts)
        batch["image"] = torch.rand(batch["image"].shape, generator=torch.Generator().manual_seed(0))
        return [batch]

    def inputs(self, batches: Sequence[Mapping[str, Any]], size: tuple[int, int] | None) -> Tensors:
        """The images."""
        return (batches[0]["image"],)
