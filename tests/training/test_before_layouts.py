"""A checkpoint of before kdcli knew the layout of features: what is continued from it keeps its meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from kdcli.distill import build_terms
from kdcli.records import Step
from kdcli.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint, step_of
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of, train_all

FEATURES = (
    "mimic.cfgs.loss={type: l2_loss, kwargs: {feat_norm: true}}",
    "mimic.adapter=auto",
    "mimic.teacher0.mimic_name=[layer3]",
    "mimic.student.mimic_name=[layer3]",
    "trainer.log_freq=1",
    "trainer.save_freq=1",
    "trainer.keep_checkpoints=99",
)


def losses(records: object) -> list[dict[str, float]]:
    return [dict(record.losses) for record in records if isinstance(record, Step)]  # type: ignore[attr-defined]


def test_a_run_continued_from_there_equals_one_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as before:
        before.setattr(build_terms, "_normalizes", lambda _: False)
        whole = losses(train_all(spec_of(SPEC, *FEATURES, "saver.save_dir=run")))
    folder = tmp_path / "run/checkpoints"
    for path in checkpoints(folder):
        state = load_checkpoint(path)
        assert state.pop("layouts") is True
        path.unlink()
        if step_of(path) <= 5:
            save_checkpoint(folder, step_of(path), state, keep=99)
    (tmp_path / "run/finished.json").unlink(missing_ok=True)
    with run_of(spec_of(SPEC, *FEATURES, "saver.save_dir=run"), resume=folder) as run:
        assert any(isinstance(module, nn.BatchNorm2d) for module in run.trainee.mimickers.modules())
        rest = losses(train(run))
    assert rest == whole[5:]
    newest = checkpoints(folder)[0]
    assert load_checkpoint(newest)["layouts"] is False
    with run_of(spec_of(SPEC, *FEATURES, "saver.save_dir=new")) as run:
        assert not any(isinstance(module, nn.BatchNorm2d) for module in run.trainee.mimickers.modules())
