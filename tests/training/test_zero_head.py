"""A student whose head starts at zero: every softmax row is even, and has no direction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdcli.records import Evaluation, Step
from kdcli.spec.parse import read
from kdcli.training.train import train
from tests.scenes import SAMPLES
from tests.training.runs import run_of


@pytest.mark.slow
@pytest.mark.parametrize("task_loss", ["true", "false"])
def test_dist_teaches_it(task_loss: str, tmp_path: Path) -> None:
    changes = [
        "mimic.cfgs={loss: {type: dist}}",
        f"mimic.task_loss={task_loss}",
        f"mimic.teacher0.teacher_weight={SAMPLES / 'weights/digits_teacher.safetensors'}",
        "trainer.max_epoch=6",
        "trainer.test_freq=6",
        "trainer.lr_scheduler.kwargs.T_max=6",
        f"saver.save_dir={tmp_path / 'run'}",
    ]
    with run_of(read(str(SAMPLES / "digits_kd.yaml"), changes)) as run:
        head = [layer for layer in run.student.modules() if isinstance(layer, nn.Linear)][-1]
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
        records = list(train(run))
    steps = [record for record in records if isinstance(record, Step)]
    # Nothing correlates at first: 1 for the rows and 1 for the columns.
    assert steps[0].losses["mimic_job0.teacher0.loss"] == pytest.approx(2, abs=1e-4)
    assert max(step.total for step in steps) < 10
    (measured,) = [record for record in records if isinstance(record, Evaluation)]
    # Guessing scores 10; divided by what keeps the division from failing, it stays there.
    assert measured.metrics["top1"] > 40
