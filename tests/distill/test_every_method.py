"""Every loss of the table, named in a spec in one line, trains, and continues as if it had not stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.losses import LOSSES
from kdcli.models.weights import read_weights
from kdcli.records import Saved, Step
from kdcli.spec.parse import ParsedSpec
from kdcli.training.checkpoint import checkpoints, load_checkpoint
from kdcli.training.train import train
from tests.distill.methods import METHODS, mimic_of
from tests.distill.specs import STEPS, TEACHER, spec_with
from tests.training.runs import run_of, train_all

UNMOVED = {
    "ab": "conv.bias",
    "fgd": "context.where.bias",
    "fitnet": "conv.bias",
    "ft": "encoder",
    "pkd": "adapter.norm",
    "wkd_f": "conv",
}
"""What a norm or softmax right after it makes indifferent: its gradient is zero but for rounding."""


def state_of(folder: str) -> dict[str, torch.Tensor]:
    """The trainee in the newest checkpoint of a run."""
    trainee: dict[str, torch.Tensor] = load_checkpoint(checkpoints(Path(folder) / "checkpoints")[0])[
        "trainee"
    ]
    return trainee


def stopped_at_first_save(parsed: ParsedSpec) -> int:
    with run_of(parsed) as run:
        for record in train(run):
            if isinstance(record, Saved):
                return record.step
    raise AssertionError("nothing was saved")


def test_the_table_knows_every_loss() -> None:
    assert METHODS.keys() == LOSSES.keys()


@pytest.mark.parametrize(
    ("name", "job"),
    [*((name, {}) for name in sorted(LOSSES)), pytest.param("cosine", {"standardize": "phi_s"}, id="phi_s")],
)
def test_a_method_trains_and_resumes(name: str, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clipped: set[int] = set()
    clip = torch.nn.utils.clip_grad_norm_

    def noted(parameters: list[torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        clipped.update(id(parameter) for parameter in parameters)
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    mimic = {**mimic_of(name, TEACHER), **job}
    with run_of(spec_with(mimic, "saver.save_dir=whole")) as run:
        trainee = run.trainee
        own = {
            n: p for n, p in trainee.named_parameters() if p.requires_grad and not n.startswith("student.")
        }
        before = {n: p.detach().clone() for n, p in own.items()}
        student = set(run.deployed.exported_state())
        losses = [record.losses for record in train(run) if isinstance(record, Step)]
        assert len(losses) == STEPS
        assert all(math.isfinite(value) for parts in losses for value in parts.values())
        assert any("loss" in key and "task" not in key for key in losses[0])
        for parameter_name, parameter in own.items():
            assert id(parameter) in clipped, f"{parameter_name} is not in the optimizer, or not clipped"
            moved = not torch.equal(parameter, before[parameter_name])
            indifferent = name in UNMOVED and UNMOVED[name] in parameter_name
            assert moved or indifferent, f"{parameter_name} did not move"
        final = {key: value.clone() for key, value in trainee.state_dict().items()}
    saved = state_of("whole")
    assert saved.keys() == final.keys() and own.keys() <= saved.keys()
    exported = read_weights(Path("whole/student.safetensors"))
    assert set(exported) == student
    assert name == "simkd" or not any("mimickers" in key or "_end" in key for key in exported)

    parts = spec_with(
        mimic, "saver.save_dir=parts", "saver.auto_resume=true", "trainer.save_every_minutes=1e-9"
    )
    assert stopped_at_first_save(parts) == 2
    train_all(parts)
    resumed = state_of("parts")
    assert all(torch.equal(resumed[key], saved[key]) for key in saved)
