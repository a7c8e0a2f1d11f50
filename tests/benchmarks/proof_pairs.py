"""The two pairs that `proof` measures on: what each row's spec is, and which weights it may choose from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import yaml

from tests.benchmarks.foundation import images
from tests.benchmarks.runs import Spec
from tests.distill.methods import mimic_of

SAMPLES = Path(__file__).parent.parent.parent / "sample_configs"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train the student.

    says: the row's words in the table. weights: `loss_weight` is chosen from them; () where nothing is distilled.
    views: the teacher's answers are cached in so many views of each image; 0: it runs in each step.
    parts: names of the trainings, one after the other, with each one's share of the steps. losses: what is distilled
    beside the task in the part `train`. first: what is distilled in a part without labels. rates: the learning rate
    of a part, else 0.002. mixup: of labelled images.
    """

    says: str
    weights: tuple[float, ...] = ()
    views: int = 0
    parts: Mapping[str, float] = field(default_factory=lambda: {"train": 1.0})
    losses: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    mixup: bool = False

    @property
    def tries(self) -> tuple[float, ...]:
        """The weights that are trained with to choose one: none where there is no choice."""
        return self.weights if len(self.weights) > 1 else ()


class Pair(ABC):
    """A teacher, a student and data: the first of `rows` is the student alone."""

    rows: ClassVar[Mapping[str, Row]]
    images: ClassVar[int]
    batch: ClassVar[int]
    teacher: Path

    @property
    def alone(self) -> str:
        """The row that all costs are relative to."""
        return next(iter(self.rows))

    @property
    def words(self) -> list[str]:
        """What the command has to say beside the pair's name, so that another process has the same pair."""
        return []

    @property
    @abstractmethod
    def head(self) -> str:
        """What the table says before its rows."""

    @abstractmethod
    def spec(self, row: str, part: str, *, weight: float, seed: int, steps: int, on: str) -> Spec:
        """The spec of one training, without its folder. on: `val` to choose weights, `test` for the table."""

    def images_of(self, part: str) -> int:
        """How many images an epoch of a part has."""
        return self.images


UNLABELLED = {"unlabelled": 8000, "wide": 16000}
"""Photographs of the parts without labels; those of `wide` show things of no class in every second one."""


class Stamps(Pair):
    """Photographs of 96 pixels, eight classes: ImageNet's Lite0 with a linear probe teaches a network from scratch."""

    images, batch = 1600, 64
    rows: ClassVar[Mapping[str, Row]] = {
        "alone": Row(says="student alone"),
        "alone_mixup": Row(says="student alone, mixup, lr 0.006", mixup=True, rates={"train": 0.006}),
        "kd": Row(says="`kd_loss` T 4", weights=(1, 2, 4), losses=("logits",)),
        "kd_mixup": Row(
            says="`kd_loss` T 4, mixup (the patient teacher)",
            weights=(1, 2, 4),
            losses=("logits",),
            mixup=True,
        ),
        "kd_cached": Row(
            says="`kd_loss` T 4, 8 cached views", weights=(1, 2, 4), views=8, losses=("logits",)
        ),
        "srd": Row(says="`srd` on the pooled vectors", weights=(0.3, 1, 3), losses=("srd",)),
        "features_kd": Row(
            says="`cosine` on map and pooled vector, `kd_loss` T 4",
            weights=(1, 2, 4),
            losses=("logits", "features"),
        ),
        "features_kd_cached": Row(
            says="`cosine` on map and pooled vector, `kd_loss` T 4, 8 cached views",
            weights=(1, 2, 4),
            views=8,
            losses=("logits", "features"),
        ),
        "first_kd": Row(
            says="three quarters of the steps `cosine` and `kd_loss` without labels (8,000 photographs), then with, "
            "2 cached views",
            weights=(1, 2, 4),
            views=2,
            parts={"unlabelled": 0.75, "train": 0.25},
            losses=("logits", "features"),
            first=("logits", "features"),
        ),
        "unlabelled_kd": Row(
            says="`kd_loss` T 4 alone, without labels (8,000 photographs), 2 cached views, lr 0.006",
            weights=(1,),
            views=2,
            parts={"unlabelled": 1.0},
            first=("logits",),
            rates={"unlabelled": 0.006},
        ),
        "first_kd_mixup": Row(
            says="half the steps `cosine` and `kd_loss` without labels (8,000 photographs, 2 cached views, lr 0.006), "
            "then the labels alone, mixup, lr 0.003",
            weights=(1,),
            views=2,
            parts={"unlabelled": 0.5, "train": 0.5},
            first=("logits", "features"),
            rates={"unlabelled": 0.006, "train": 0.003},
            mixup=True,
        ),
        "wide": Row(
            says="`cosine` and `kd_loss` T 4 alone, without labels (16,000 photographs, half of them of other things), "
            "cached, lr 0.006",
            weights=(1,),
            views=1,
            parts={"wide": 1.0},
            first=("logits", "features"),
            rates={"wide": 0.006},
        ),
        "first_features": Row(
            says="half the steps `cosine` without labels (8,000 photographs), then `kd_loss` T 4",
            weights=(1, 2, 4),
            parts={"unlabelled": 0.5, "train": 0.5},
            losses=("logits",),
            first=("features",),
        ),
        "first_features_probe": Row(
            says="half the steps `cosine` without labels (8,000 photographs), then a linear probe",
            parts={"unlabelled": 0.5, "probe": 0.5},
            first=("features",),
        ),
    }

    def __init__(self, folder: Path, teacher_precision: str | None = None) -> None:
        """teacher_precision: of the teacher's forward, else float32."""
        self.folder, self.teacher_precision = folder, teacher_precision
        self.data, self.wide = folder / "data", folder / "wide"
        self.teacher = folder / "teacher" / "student.safetensors"

    @property
    def words(self) -> list[str]:
        """What the command has to say beside the pair's name, so that another process has the same pair."""
        return [] if self.teacher_precision is None else ["--teacher-precision", self.teacher_precision]

    @property
    def head(self) -> str:
        """What the table says before its rows."""
        return (
            "Composed photographs (`make-data stamp-scenes`), 8 classes, 1,600 of 96 pixels to train on, top-1 on "
            "1,600 of other stamps and backgrounds. Teacher: `tf_efficientnet_lite0`, a linear head on ImageNet's "
            "weights; student: `mobilenetv3_small_100` from scratch."
        )

    def images_of(self, part: str) -> int:
        """How many images an epoch of a part has."""
        return UNLABELLED.get(part, self.images)

    def folder_of(self, part: str) -> Path:
        """The photographs that a part is trained on."""
        if part == "wide":
            return self.wide / "unlabelled"
        return self.data / (part if part in UNLABELLED else "train")

    def spec(self, row: str, part: str, *, weight: float, seed: int, steps: int, on: str) -> Spec:
        """AdamW, warm-up, cosine, clipped gradients; crops of 40 to 100 % and flips."""
        kind, unlabelled = self.rows[row], part in UNLABELLED
        labels = {"labels": "none"} if unlabelled else {}
        tested = {} if part == [*kind.parts][-1] else labels
        losses = kind.first if unlabelled else kind.losses
        headless = losses == ("features",)
        spec: Spec = {
            "runtime": {
                "runner": {"type": "kd" if losses else "base"},
                "random_seed": seed,
                "channels_last": True,
            },
            "net": [
                {
                    "name": "model",
                    "type": "timm.mobilenetv3_small_100",
                    "kwargs": {"num_classes": 0 if headless else 8},
                }
            ],
            "dataset": {
                "train": {"dataset": images(self.folder_of(part), True, **labels)},
                "test": {"dataset": images(self.data / on, False, **tested)},
                "batch_sampler": {"type": "base", "kwargs": {"batch_size": self.batch}},
            },
            "trainer": {
                "max_iter": steps,
                "clip_grad_norm": 1.0,
                "optimizer": {
                    "type": "AdamW",
                    "kwargs": {"lr": kind.rates.get(part, 0.002), "weight_decay": 0.05},
                    "pconfig": {"nodecay": ["ndim_is1"]},
                },
                "lr_scheduler": _warm_cosine(steps, steps * self.batch / self.images_of(part)),
            },
        }
        if kind.mixup and not unlabelled:
            mixup = {"type": "batch_mixup", "kwargs": {"alpha": 1.0, "num_classes": 8}}
            spec["dataset"]["train"]["dataloader"] = {"type": "base", "kwargs": {"batch_fn": mixup}}
        if part == "probe":
            frozen = [f"model.{name}" for name in ("conv_stem", "bn1", "blocks", "conv_head", "norm_head")]
            spec["net"].append({"type": "self", "kwargs": {"freeze_patterns": frozen}})
        if losses:
            spec["teacher0"] = {
                "name": "model",
                "type": "timm.tf_efficientnet_lite0",
                "kwargs": {"num_classes": 8},
            }
            if self.teacher_precision is not None:
                spec["runtime"]["teacher_precision"] = self.teacher_precision
            spec["mimic"] = self._mimic(losses, kind.views, weight)
        return spec

    def _mimic(self, losses: tuple[str, ...], views: int, weight: float) -> Spec:
        """One job a loss, under its own key where there are several; without logits the student has no classifier."""
        headless = losses == ("features",)
        teacher: Spec = {"teacher_weight": str(self.teacher)}
        if views:
            teacher["cache"] = {"views": views, "dtype": "float16"}
        jobs: dict[str, Spec] = {
            "logits": {
                "cfgs": {"loss": {"type": "kd_loss", "kwargs": {"T": 4}}},
                "teacher0": {**teacher, "mimic_name": ["logits"]},
                "student": {"mimic_name": ["logits"]},
            },
            "features": {
                "cfgs": {"loss": {"type": "cosine", "adapter": {"type": "auto"}}},
                "standardize": "mean_std",
                "teacher0": {**teacher, "mimic_name": ["model.blocks.6", "model.global_pool"]},
                "student": {"mimic_name": ["model.blocks.5", "pooled" if headless else "model.flatten"]},
            },
            "srd": {
                "cfgs": {"loss": {"type": "srd"}},
                "teacher0": {**teacher, "mimic_name": ["model.global_pool"]},
                "student": {"mimic_name": ["model.flatten"]},
            },
        }
        weighed: Spec = {} if headless else {"loss_weight": weight}
        mimics = [jobs[loss] | weighed for loss in losses]
        if len(mimics) == 1:
            return mimics[0]
        return {"mimic_as_jobs": True, **{f"mimic_job{i}": one for i, one in enumerate(mimics)}}


FAMILIES = {
    "kd_loss": "softened logits",
    "dkd": "target and other classes apart",
    "dist": "correlation of logits",
    "srrl": "the teacher's classifier on the student's features",
    "fitnet": "hints",
    "srd": "projected vectors",
    "at": "attention maps",
    "sp": "similarity within a batch",
    "vid": "mutual information",
    "crd": "contrast",
    "review": "several levels at once",
    "mgd": "masked features",
}
"""Twelve methods, one a family."""

KWARGS: dict[str, Spec] = {"kd_loss": {"T": 4}, "dkd": {"warmup_epochs": 0}, "review": {"warmup_epochs": 0}}
"""What is not the authors' default: T 4 where ours is 1; no warm-up over more epochs than there are."""


class Fashion(Pair):
    """Fashion-MNIST: networks and recipe of sample_configs/fashion_kd.yaml; weights chosen on a tenth of training."""

    images, batch = 12000, 64
    rows: ClassVar[Mapping[str, Row]] = {
        "alone": Row(says="student alone"),
        **{
            name: Row(says=f"`{name}`: {family}", weights=(0.03, 0.1, 0.3, 1, 3, 10))
            for name, family in FAMILIES.items()
        },
    }

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self.teacher = SAMPLES / "weights" / "fashion_teacher.safetensors"

    @property
    def words(self) -> list[str]:
        """What the command has to say beside the pair's name, so that another process has the same pair."""
        return [] if self.root is None else ["--root", str(self.root)]

    @property
    def head(self) -> str:
        """What the table says before its rows."""
        return (
            "Fashion-MNIST, 12,000 images to train on, top-1 on all 10,000 test images. The weight is a factor on the "
            "authors' own. Teacher: a ResNet-8 of 77,754 parameters (91.41); student: 5,142 parameters."
        )

    def spec(self, row: str, part: str, *, weight: float, seed: int, steps: int, on: str) -> Spec:
        """The sample's spec with another method, batch size and length."""
        spec: Spec = yaml.safe_load((SAMPLES / "fashion_kd.yaml").read_text())
        spec["runtime"] = {"runner": {"type": "kd"}, "random_seed": seed}
        spec["dataset"]["batch_sampler"]["kwargs"]["batch_size"] = self.batch
        for side in ("train", "test"):
            if self.root is not None:
                spec["dataset"][side]["dataset"]["kwargs"]["root"] = str(self.root)
        share = 1.0
        if on == "val":
            spec["dataset"]["hold_out"], share = 0.1, 0.9
        spec["trainer"].pop("max_epoch")
        spec["trainer"]["max_iter"] = steps
        spec["trainer"]["lr_scheduler"]["kwargs"]["T_max"] = steps / (self.images * share / self.batch)
        spec.pop("mimic")
        if row == self.alone:
            spec["runtime"]["runner"]["type"] = "base"
            spec.pop("teacher0")
        else:
            mimic = mimic_of(row, {"teacher_weight": str(self.teacher)}, **KWARGS.get(row, {}))
            spec["mimic"] = {**mimic, "loss_weight": weight * mimic.get("loss_weight", 1.0)}
        return spec


def _warm_cosine(steps: int, epochs: float) -> Spec:
    return {
        "type": "CosineAnnealingLR",
        "warmup_iter": max(1, steps // 10),
        "warmup_type": "linear",
        "warmup_ratio": 0.0,
        "warmup_register_type": "no_scale_lr",
        "kwargs": {"T_max": epochs},
    }


def chosen(rows: Mapping[str, Row], names: Sequence[str]) -> dict[str, Row]:
    """The rows of those names, in the pair's order; all where no name is given."""
    return {name: row for name, row in rows.items() if name in names or not names}
