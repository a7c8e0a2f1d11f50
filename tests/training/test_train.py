"""The loop: repeatable, resumable, and never touching what is not the student's."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.errors import RunError
from kdcli.models.weights import read_weights
from kdcli.records import Evaluation, Finished, Plan, Saved, Step
from kdcli.training.checkpoint import checkpoints, load_checkpoint
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of, train_all


def weights(folder: str) -> dict[str, torch.Tensor]:
    return read_weights(Path(folder) / "student.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def steps(records: list[Any]) -> list[tuple[int, dict[str, float], float]]:
    return [(r.step, r.losses, r.lr) for r in records if isinstance(r, Step)]


def test_a_run_tells_its_story_in_order() -> None:
    records = train_all(spec_of())
    kinds = [type(record) for record in records]
    assert kinds.count(Plan) == 1 and kinds[-1] is Finished
    assert [r.step for r in records if isinstance(r, Step)] == list(range(1, 11))
    assert [r.step for r in records if isinstance(r, Evaluation)] == [5, 10]
    assert [r.step for r in records if isinstance(r, Saved)] == [5, 10]
    first = next(r for r in records if isinstance(r, Step))
    assert set(first.losses) == {"task.loss", "mimic_job0.teacher0.loss"}


def test_warm_up_weighs_the_distillation_loss_and_nothing_else() -> None:
    losses = [r for r in train_all(spec_of()) if isinstance(r, Step)]
    assert losses[0].losses["mimic_job0.teacher0.loss"] == 0.0
    assert losses[1].losses["mimic_job0.teacher0.loss"] > 0.0
    assert losses[0].losses["task.loss"] > 0.0


def test_the_same_spec_gives_the_same_bits() -> None:
    first = train_all(spec_of(SPEC, "saver.save_dir=a"))
    second = train_all(spec_of(SPEC, "saver.save_dir=b"))
    assert steps(first) == steps(second)
    assert same(weights("a"), weights("b"))


def test_another_seed_gives_other_weights() -> None:
    train_all(spec_of(SPEC, "saver.save_dir=a"))
    train_all(spec_of(SPEC, "saver.save_dir=b", "runtime.random_seed=4"))
    assert not same(weights("a"), weights("b"))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_no_bit(workers: int) -> None:
    per_sample = "dataset.dataloader.kwargs.in_memory=false"
    base = [SPEC, per_sample]
    train_all(spec_of(*base, "saver.save_dir=a"))
    train_all(spec_of(*base, "saver.save_dir=b", f"dataset.dataloader.kwargs.num_workers={workers}"))
    assert same(weights("a"), weights("b"))


def test_a_teacher_is_the_same_after_training_and_in_no_checkpoint() -> None:
    with run_of(spec_of()) as run:
        before = copy.deepcopy(run.teachers["teacher0"].net.state_dict())
        list(train(run))
        assert same(before, run.teachers["teacher0"].net.state_dict())
        assert not any(p.requires_grad for p in run.teachers["teacher0"].net.parameters())
        state = load_checkpoint(checkpoints(run.folder.checkpoints)[0])
    assert not any("teacher" in key for key in state["trainee"])
    assert not any("teacher" in key for key in weights("runs/small"))


def test_no_forward_changes_the_batch() -> None:
    with run_of(spec_of()) as run:
        batch = dict(next(run.train_loader.batches(0)))
        before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        view = run.teachers["teacher0"].view(batch)
        run.trainee(batch, {"teacher0": view}, _clock())
        assert batch.keys() == before.keys()
        assert all(torch.equal(batch[k], before[k]) for k in before if isinstance(before[k], torch.Tensor))


def test_a_teacher_shared_by_jobs_runs_once_a_step() -> None:
    text = SPEC.replace(
        "mimic:\n",
        """mimic:
  mimic_as_jobs: true
  mimic_job1:
    cfgs: {loss: {type: l2_loss}}
    adapter: auto
    teacher0: {mimic_name: [model.layer2], allow_random: true, allow_weak_teacher: true}
    student: {mimic_name: [model.layer2]}
  mimic_job0:
""",
    ).replace("  warm_up_iters: 3\n", "")
    head, tail = text.split("  mimic_job0:\n")
    body, rest = tail.split("dataset:\n", 1)
    text = (
        head + "  mimic_job0:\n" + "".join(f"  {line}\n" for line in body.splitlines()) + "dataset:\n" + rest
    )
    with run_of(spec_of(text, "trainer.max_iter=3")) as run:
        calls = []
        records = iter(train(run))
        run.teachers["teacher0"].net.get_submodule("model.conv1").register_forward_hook(
            lambda *_: calls.append(run.trainee.training)
        )
        for record in records:
            if isinstance(record, Plan):
                calls.clear()
            if isinstance(record, Step) and record.step == 3:
                assert len(calls) == 3
                assert set(record.losses) == {
                    "task.loss",
                    "mimic_job0.teacher0.loss",
                    "mimic_job1.teacher0.loss",
                }


def test_the_teacher_stops_after_the_deepest_tap() -> None:
    text = SPEC.replace("kd_loss, kwargs: {T: 2}", "l2_loss").replace("[logits]", "[model.layer2]")
    with run_of(spec_of(text, "mimic.adapter=auto")) as run:
        calls = []
        net = run.teachers["teacher0"].net
        net.get_submodule("model.layer3").register_forward_hook(lambda *_: calls.append("layer3"))
        run.teachers["teacher0"].view(next(run.train_loader.batches(0)))
        assert calls == []


def test_resuming_equals_not_having_stopped() -> None:
    options = ["trainer.accumulate_steps=2", "trainer.ema.enable=true", "trainer.ema.kwargs.decay=0.9"]
    whole = train_all(spec_of(SPEC, "saver.save_dir=whole", *options))
    parsed = spec_of(SPEC, "saver.save_dir=parts", "saver.auto_resume=true", *options)
    with run_of(parsed) as run:
        first = []
        for record in train(run):
            first.append(record)
            if isinstance(record, Saved):
                break
    second = train_all(parsed)
    assert steps(first) + steps(second) == steps(whole)
    assert same(weights("whole"), weights("parts"))
    assert second[-1].last == whole[-1].last and second[-1].best == whole[-1].best


def test_two_stages_train_their_own_jobs_and_resume() -> None:
    text = SPEC.replace(
        "mimic:\n",
        """mimic:
  stages:
    - {name: hints, max_iter: 4, jobs: [mimic_hint], task_loss: false}
    - {name: logits, max_epoch: 1, jobs: [mimic_job0]}
  mimic_as_jobs: true
  mimic_hint:
    adapter: auto
    cfgs: {loss: {type: l2_loss}}
    teacher0: {mimic_name: [model.layer2], allow_random: true, allow_weak_teacher: true}
    student: {mimic_name: [model.layer2]}
  mimic_job0:
""",
    )
    text = text.replace("mimic_hint", "mimic_job1").replace("  warm_up_iters: 3\n", "")
    head, tail = text.split("  mimic_job0:\n")
    body, rest = tail.split("dataset:\n", 1)
    text = (
        head + "  mimic_job0:\n" + "".join(f"  {line}\n" for line in body.splitlines()) + "dataset:\n" + rest
    )
    whole = train_all(spec_of(text, "saver.save_dir=whole"))
    shown = [r for r in whole if isinstance(r, Step)]
    assert [r.stage for r in shown] == ["hints"] * 4 + ["logits"] * 5
    assert set(shown[0].losses) == {"mimic_job1.teacher0.loss"}
    assert set(shown[-1].losses) == {"task.loss", "mimic_job0.teacher0.loss"}
    parsed = spec_of(
        text,
        "saver.save_dir=parts",
        "saver.auto_resume=true",
        "trainer.save_every_minutes=1e-9",
        "trainer.log_freq=3",
    )
    with run_of(parsed) as run:
        first = []
        for record in train(run):
            first.append(record)
            if isinstance(record, Saved):
                break
    assert first[-1].step == 3
    second = train_all(parsed)
    assert steps(first) + steps(second) == steps(whole)
    assert same(weights("whole"), weights("parts"))


def test_a_finished_run_is_not_overwritten_by_accident() -> None:
    train_all(spec_of(SPEC, "trainer.max_iter=1"))
    with pytest.raises(RunError, match="a finished run lies in"):
        train_all(spec_of(SPEC, "trainer.max_iter=1"))
    train_all(spec_of(SPEC, "trainer.max_iter=1"), overwrite=True)


def test_an_unfinished_run_is_not_overwritten_by_accident() -> None:
    with run_of(spec_of()) as run:
        for record in train(run):
            if isinstance(record, Saved):
                break
    with pytest.raises(RunError, match="an unfinished run lies in"):
        train_all(spec_of())


def test_resume_refuses_another_spec_and_names_the_key() -> None:
    with run_of(spec_of()) as run:
        for record in train(run):
            if isinstance(record, Saved):
                break
    changed = spec_of(SPEC, "trainer.optimizer.kwargs.lr=0.01")
    with pytest.raises(RunError, match=r"trainer\.optimizer\.kwargs\.lr"):
        train_all(changed, resume=True)
    train_all(changed, resume=True, allow_changed=("trainer.optimizer.kwargs.lr",))


def test_the_run_folder_holds_what_it_should() -> None:
    train_all(spec_of(SPEC, "saver.save_dir=out"))
    found = {path.name for path in Path("out").iterdir()}
    assert {
        "spec.yaml",
        "spec.resolved.yaml",
        "env.json",
        "checkpoints",
        "student.safetensors",
        "finished.json",
    } <= found
    assert json.loads(Path("out/env.json").read_text())["torch"] == torch.__version__


def test_a_base_run_ignores_mimic_and_starts_from_the_same_weights() -> None:
    with run_of(spec_of()) as run:
        distilled = copy.deepcopy(run.student.state_dict())
    with run_of(spec_of(SPEC, "runtime.runner.type=base", "saver.save_dir=b")) as run:
        assert not run.teachers
        assert same(distilled, run.student.state_dict())


def _clock() -> Any:
    from kdcli.distill.mimickers.mimicker import StepInfo

    return StepInfo()


def test_an_epoch_without_a_batch_stops() -> None:
    with run_of(spec_of()) as run:
        batches = run.train_loader.batches
        run.train_loader.batches = lambda epoch, start=0: batches(epoch, start if epoch == 0 else 5)  # type: ignore[method-assign]
        with pytest.raises(RunError, match="KD756: epoch 2 gave no batch, and 5 steps are left"):
            list(train(run))
