"""A task of one's own is new files and lines in tables: a number for each image, learnt, measured, compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcli.data import DATASETS
from kdcli.models import MODULES
from kdcli.spec.tables import Target, TaskRecord
from kdcli.tasks import TASKS
from tests.training.conftest import Kdcli

DATA = '''
"""Images whose mean brightness is to be told."""

import numpy as np
import torch

from kdcli.data.facts import DataFacts


class Levels:
    """Grey images of one level each, with noise."""

    def __init__(self, train, num_samples):
        draws = torch.Generator().manual_seed(int(train))
        self.values = torch.rand(num_samples, generator=draws)
        self.noise = 0.1 * torch.randn(num_samples, 1, 8, 8, generator=draws)
        self.facts = DataFacts(shape=(1, 8, 8), num_samples=num_samples)

    def __len__(self):
        return len(self.values)

    def load(self, index, draws):
        return {"image": self.values[index] + self.noise[index], "value": self.values[index]}

    def collate(self, samples, indices):
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "value")}
        return {**batch, "indices": torch.from_numpy(indices)}

    def name(self, index):
        return f"sample {index}"

    def aspect_ratios(self):
        return np.ones(len(self))


def levels(train: bool, *, num_samples: int = 32) -> Levels:
    """So many images."""
    return Levels(train, num_samples)
'''

MODULE = '''
"""A network that tells one number, and its loss."""

from torch import nn

from kdcli.models.module import ViewModule


class LevelNet(ViewModule):
    """Reads `image` and, in training, `value`; gives `value_found` [B], in training `value_loss` too."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 3))
        self.head = nn.Linear(4, 1)

    def forward(self, outputs):
        found = self.head(self.body(outputs["image"]).mean((2, 3)))[:, 0]
        if not self.training:
            return {"value_found": found}
        return {"value_found": found, "value_loss": ((found - outputs["value"]) ** 2).mean()}
'''

TASK = '''
"""One number for each image; the mean squared error decides."""

import torch


class Squares:
    """Counts samples and sums squared errors."""

    unusable = "gives numbers that are not finite"

    def __init__(self):
        self.found = torch.zeros(2, dtype=torch.float64)

    def update(self, outputs, batch):
        gap = outputs["value_found"].double() - batch["value"]
        self.found += torch.stack([torch.tensor(float(len(gap))), (gap**2).sum()])

    def sums(self):
        return self.found

    def result(self, sums):
        return {"minus_mse": -float(sums[1]) / max(float(sums[0]), 1.0)}

    def unanswered(self, sums):
        return 0

    def unanswered_samples(self):
        return []


class Regression:
    name, primary = "regression", "minus_mse"
    rehearses, own_size = "fake", False
    why_zero = "every number is right already"
    agreement = matching = kept = deploy = report = None

    def modules(self, spec):
        return spec.net

    def sample(self, part, facts, *, channels=3, modules=(), aligned=False):
        shape = facts.shape or (channels, 32, 32)
        return {"image": torch.zeros(2, *shape), "value": torch.zeros(2), "indices": torch.arange(2)}

    def training_classes(self, spec, places):
        return None

    def agree(self, spec, train, test, places):
        return []

    def check_truth(self, spec, test, places):
        return []

    def fits(self, spec, outputs, train, test):
        return []

    def meter(self, facts=None):
        return Squares()

    def answers(self, outputs):
        return "value_found" in outputs

    def judges(self, outputs, facts, *, weights):
        return weights and self.answers(outputs)

    def chance(self, num_classes):
        return -1.0 / 12

    def near_chance(self, metrics, num_classes, samples):
        return metrics["minus_mse"] <= -1.0 / 12
'''

SPEC = """
runtime: {runner: {type: kd}, random_seed: 1}
net: {name: model, type: level_net, kwargs: {width: 2}}
teacher0: {name: model, type: level_net, kwargs: {width: 6}}
mimic:
  cfgs: {loss: {type: l2_loss}}
  teacher0: {mimic_name: [model.body.2], allow_random: true, allow_weak_teacher: true}
  student: {mimic_name: [model.body.2]}
dataset:
  train: {dataset: {type: levels, kwargs: {num_samples: 32}}}
  test: {dataset: {type: levels, kwargs: {num_samples: 12}}}
  batch_sampler: {type: base, kwargs: {batch_size: 4}}
trainer:
  max_epoch: 4
  optimizer: {type: SGD, kwargs: {lr: 0.05}}
  lr_scheduler: {type: CosineAnnealingLR, warmup_register_type: no_scale_lr, kwargs: {T_max: 4}}
"""


@pytest.fixture
def levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The spec of a run whose task, data and network are a package of their own."""
    package = tmp_path / "own" / "levels_of_grey"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("data", DATA), ("module", MODULE), ("task", TASK)):
        (package / f"{name}.py").write_text(text)
    (tmp_path / "levels.yaml").write_text(SPEC)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(DATASETS, "levels", Target("levels_of_grey.data:levels"))
    monkeypatch.setitem(MODULES, "level_net", Target("levels_of_grey.module:LevelNet"))
    record = TaskRecord(
        target=Target("levels_of_grey.task:Regression"),
        datasets=frozenset({"levels"}),
        words=("regression",),
        not_compiled="levels can't be compiled",
    )
    monkeypatch.setitem(TASKS, "regression", record)
    yield "levels.yaml"
    for name in [name for name in sys.modules if name.startswith("levels_of_grey")]:
        del sys.modules[name]


def test_it_is_validated_trained_measured_and_reported(kdcli: Kdcli, levels: str) -> None:
    code, out, err = kdcli("validate", levels, "--files")
    assert code == 0, out + err
    assert "the spec is right" in out
    code, out, err = kdcli("inspect-features", levels)
    assert code == 0 and "body.2" in out, out + err
    alone = ("runtime.runner.type=base", "mimic=", "teacher0=", "net.kwargs.width=6", "saver.save_dir=large")
    code, out, err = kdcli("train", levels, "--quiet", *alone)
    assert code == 0, err
    weight = "mimic.teacher0.teacher_weight=large/student.safetensors"
    code, out, err = kdcli("train", levels, "--quiet", weight)
    assert code == 0, err
    run = Path("runs/levels")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["losses"] for line in lines if line["kind"] == "step"]
    assert len(losses) == 32 and len(losses[0]) == 2
    for name in losses[0]:
        by_epoch = [sum(line[name] for line in losses[start : start + 8]) for start in range(0, 32, 8)]
        assert by_epoch[-1] < by_epoch[0], (name, by_epoch)
    code, out, err = kdcli("eval", str(run), "--format", "json")
    assert code == 0, err
    told = json.loads(out)
    assert told["primary"] == "minus_mse"
    finished = json.loads((run / "finished.json").read_text())
    student = told["networks"][0]
    assert student["metrics"]["minus_mse"] == pytest.approx(finished["best"]["minus_mse"])
    assert student["agreement"] is None
    teacher = told["networks"][1]
    assert teacher["metrics"]["minus_mse"] == pytest.approx(finished["teachers"]["teacher0"]["minus_mse"])
    code, out, err = kdcli("report", str(run))
    assert code == 0 and err == "", err
    shown = json.loads((run / "report_data.json").read_text())
    assert shown["primary"] == "minus_mse" and set(shown) == {"version", "primary", "comparison"}
    assert shown["comparison"][0]["metrics"] == finished["best"]


def test_what_it_has_not_is_said_in_a_line(kdcli: Kdcli, levels: str) -> None:
    code, _, err = kdcli("export", levels, "--format", "safetensors")
    assert code == 2 and "students of the task regression can't be exported" in err, err
    code, _, err = kdcli("eval", levels, "--show", "shown")
    assert code == 2 and "`--show` is for detectors, and this spec's task is regression" in err, err
    code, out, _ = kdcli("validate", levels, "runtime.compile=true")
    assert code == 1 and "KD222: levels can't be compiled" in out, out


def test_a_task_name_comes_before_the_data(kdcli: Kdcli, levels: str) -> None:
    changes = ("runtime.task_names=regression", "runtime.compile=true")
    fake = [
        f"dataset.{side}.dataset={{type: fake, kwargs: {{transformer: [{{type: to_tensor}}]}}}}"
        for side in ("train", "test")
    ]
    code, out, _ = kdcli("validate", levels, *changes, *fake)
    assert code == 1 and "KD222: levels can't be compiled" in out, out
