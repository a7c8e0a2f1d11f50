"""The rules of the watch on numbers made by hand, and runs on digits that must trip them or must not."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdcli.codes import CODES
from kdcli.errors import RunError
from kdcli.models.heads import ClsPostProcess
from kdcli.models.weights import save_safetensors
from kdcli.records import Alarm, Evaluation, Finished, Plan, Record, Step
from kdcli.report.run_files import MetricsWriter, read_metrics
from kdcli.spec.parse import read
from kdcli.spec.schema import Ema, Job, LossSpec
from kdcli.tasks.classification.task import GuessedClasses
from kdcli.training import alarms
from kdcli.training.alarms import WINDOW, Memory
from kdcli.training.checkpoint import checkpoints, load_checkpoint
from kdcli.training.looks import Looks, differs, spread_of, sums_of_squares
from kdcli.training.train import train
from kdcli.training.watch import Watch
from tests.training.runs import SPEC, run_of, spec_of, train_all

SAMPLES = Path(__file__).parents[2] / "sample_configs"
TEACHER = f"mimic.teacher0.teacher_weight={SAMPLES / 'weights/digits_teacher.safetensors'}"


# rules


def test_a_loss_is_far_above_three_times_its_start_or_its_floor() -> None:
    assert not alarms.far_above(2.3, 6.8)
    assert alarms.far_above(2.3, 7.0)
    # A fine-tuned student begins with next to nothing: what counts is the loss of one that knows nothing.
    assert not alarms.far_above(0.01, 0.5, floor=2.3)
    assert alarms.far_above(0.01, 7.0, floor=2.3)
    assert not alarms.far_above(0.0, 0.0)


def test_nothing_is_known_at_the_loss_of_a_guess() -> None:
    assert alarms.knows_nothing(2.302, math.log(10))
    assert alarms.knows_nothing(40.0, math.log(10))
    assert not alarms.knows_nothing(2.2, math.log(10))
    # One class alone: guessing is right.
    assert not alarms.knows_nothing(0.0, 0.0)


def test_the_loss_of_a_guess_by_hand() -> None:
    counts = torch.tensor([30.0, 10.0])
    student = nn.ModuleDict({"post": ClsPostProcess()})
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert GuessedClasses().value(student, counts, mixed=False) == pytest.approx(entropy)
    smooth = {
        "type": "label_smooth_ce",
        "kwargs": {"smooth_ratio": 0.2, "num_classes": 2, "loss_weight": 3.0},
    }
    student = nn.ModuleDict({"post": ClsPostProcess(cls_loss=smooth)})
    smoothed = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert GuessedClasses().value(student, counts, mixed=False) == pytest.approx(3 * smoothed)
    assert GuessedClasses().value(nn.ModuleDict(), counts, mixed=False) is None


@pytest.mark.parametrize("kind", ["ce", "label_smooth_ce", "bce"])
@pytest.mark.parametrize("mixed", [False, True])
def test_no_fixed_answer_has_a_lower_loss_than_the_guess(kind: str, mixed: bool) -> None:
    kwargs: dict[str, Any] = {"ce": {}, "bce": {"bias": True}}.get(
        kind, {"smooth_ratio": 0.1, "num_classes": 4}
    )
    post = ClsPostProcess(cls_loss={"type": kind, "kwargs": kwargs})
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 0])
    targets = nn.functional.one_hot(labels, 4).float()
    targets = 0.7 * targets + 0.3 * targets.roll(1, 0) if mixed else targets
    batch = {"labels": labels, **({"mixed_labels": targets} if mixed else {})}
    counts = GuessedClasses().targets(batch)
    assert counts is not None
    guess = GuessedClasses().value(nn.ModuleDict({"post": post}), counts, mixed=mixed)
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = post({"logits": logits.expand(8, 4), **batch})["loss"]
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    assert guess == pytest.approx(float(loss().detach()), rel=1e-3)


@pytest.mark.parametrize(("later", "told"), [(0.45, False), (30.0, False), (100.0, True)])
def test_a_loss_that_began_with_nothing_is_judged_by_those_it_is_summed_with(
    later: float, told: bool
) -> None:
    """A detector that proposes no box at first has no loss of boxes; 30 times 2.4 is trouble."""
    watch = object.__new__(Watch)
    watch.memory, watch.floor, watch.constants = Memory(), None, {}
    said: list[str] = []
    watch._alarm = lambda code, *_, **__: said.append(code)  # type: ignore[method-assign, assignment]
    for step in range(1 + 2 * WINDOW):
        watch._against_start(step, "task.bbox_cls_loss", 2.4)
        watch._against_start(step, "task.bbox_loc_loss", later if step else 0.0007)
    assert (said == ["KD780"]) is told and len(said) <= 1


TERM = "mimic_job0.teacher0.loss"


def judged(
    losses: list[float], *, steps: int = 600, felt: float = 1.0, span: tuple[int, int | None] | None = None
) -> list[str]:
    """Codes of a term with these losses, step by step, whose constant answer costs 1; felt: the share of its weight."""
    watch = object.__new__(Watch)
    watch.memory, watch.floor, watch.constants = Memory(), None, {TERM: 1.0}
    watch.plan = SimpleNamespace(steps=steps)  # type: ignore[assignment]
    job = None if span is None else Job(start_iter=span[0], end_iter=span[1])
    watch._factors = {TERM: None if job is None else (job, LossSpec(type="l2_loss"))}
    said: list[str] = []
    watch._alarm = lambda code, *_, **__: said.append(code)  # type: ignore[method-assign, assignment]
    for step, value in enumerate(losses, 1):
        watch.memory.felt[TERM] = felt * step
        watch._against_start(step, TERM, value)
    return said


def test_a_term_is_no_better_than_a_constant_from_98_percent_of_its_cost() -> None:
    assert alarms.no_better_than_constant(0.99, 1.0) and alarms.no_better_than_constant(1.7, 1.0)
    assert not alarms.no_better_than_constant(0.97, 1.0) and not alarms.no_better_than_constant(0.0, 0.0)
    assert alarms.steps_to_learn(60) == 100 and alarms.steps_to_learn(5000) == 2500


def test_a_term_that_stays_at_a_constants_cost_is_told_after_half_of_its_steps() -> None:
    still = [1.2] * 20 + [0.991] * 400
    assert judged(still[:280]) == [] and "KD790" in judged(still)
    assert judged(still, steps=2000) == []
    # One mean over 20 steps below it is enough, whatever comes after; a single step is not.
    assert judged([*still[:40], *[0.9] * 20, *[1.1] * 160]) == []
    assert "KD790" in judged([*still[:40], 0.9, *still[41:]])
    # A step at half the weight counts half; of a term that is in force for 400 of 2,000 steps 200 are enough.
    assert judged(still[:220], felt=0.5) == [] and "KD790" in judged([*still, *still[20:]], felt=0.5)
    assert judged(still[:200], steps=2000) == [] and "KD790" in judged(
        still[:200], steps=2000, span=(1600, None)
    )


def test_outputs_that_differ_by_what_a_softmax_does_not_see_are_alike() -> None:
    same = torch.tensor([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    assert float(spread_of(same)) == pytest.approx(0.0, abs=1e-12) and alarms.all_alike(
        float(spread_of(same))
    )
    assert math.isnan(float(spread_of(same[:1]))) and not alarms.all_alike(math.nan)
    # Centred rows are (1, -1) and (-1, 1): each column's deviation is 1.
    assert float(spread_of(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))) == pytest.approx(1.0)


def test_a_unit_is_dead_where_every_image_gives_it_the_same() -> None:
    feature = torch.tensor([[0.0, 1.0, 5.0], [0.0, 2.0, 5.0]])
    assert differs(feature).tolist() == [0.0, 1.0, 0.0]
    assert alarms.share_dead([0, 1, 0]) == pytest.approx(2 / 3)
    assert alarms.mostly_dead([0.0] * 19 + [1.0]) and not alarms.mostly_dead([0.0] * 18 + [1.0, 2.0])
    assert not alarms.mostly_dead([0.0])


def test_an_update_is_measured_against_the_weights() -> None:
    assert sums_of_squares([torch.tensor([3.0, 4.0]), torch.zeros(2)]).tolist() == [25.0, 0.0]
    assert alarms.stands_still(1e-13) and not alarms.stands_still(1e-6)


@pytest.mark.parametrize(
    "ema, steps, share",
    [
        ({"kwargs": {"decay": 0.9}}, 3, 0.9**3),
        ({"kwargs": {"decay": 0.9, "inner_T": 2}}, 3, 0.81**2),
        ({"kwargs": {"decay": 0.9, "warmup": 3}}, 3, (1 / 3) * (2 / 4) * (3 / 5)),
        ({"ema_type": "exp", "kwargs": {"decay": 0.9}}, 3, 0.0),
        ({"kwargs": {"decay": 0.5}}, 10**9, 0.0),
        ({"kwargs": {"decay": 1 - 1e-12}}, 10**6, 1.0),
    ],
)
def test_what_an_average_holds_of_its_start_is_the_product_of_its_decays(
    ema: dict[str, Any], steps: int, share: float
) -> None:
    assert alarms.start_held(Ema(**ema), steps) == pytest.approx(share, abs=1e-3 if share == 0 else 1e-5)


def test_a_gradient_drifts_from_five_looks_on() -> None:
    assert not alarms.drifted([1.0] * 4, 1e6)
    assert alarms.drifted([1.0, 2.0, 1.0, 1.0, 1.0], 101.0)
    # Nearly learnt: what is much to the median is little to the start.
    assert not alarms.drifted([1.0, 1e-3, 1e-3, 1e-3, 1e-3], 9.0)
    assert alarms.drifted([1.0, 1e-3, 1e-3, 1e-3, 1e-3], 11.0)
    assert not alarms.drifted([1.0] * 5, 99.0) and not alarms.drifted([0.0] * 5, 5.0)


def test_a_memory_of_another_version_is_read_as_far_as_it_is_known() -> None:
    assert Memory.of({"stage": 2, "of_tomorrow": 1}) == Memory(stage=2)
    assert Memory.of({}) == Memory()


@pytest.mark.parametrize("code", sorted(alarms.RULES))
def test_each_rule_is_explained(code: str) -> None:
    assert code in CODES and alarms.RULES[code].name and alarms.RULES[code].remedy


# where alarms stand


def alarm(step: int = 3, **changes: Any) -> Alarm:
    return Alarm(
        message="KD780: ...",
        step=step,
        code="KD780",
        name="n",
        numbers={"loss": math.inf},
        remedy="r",
        **changes,
    )


def test_alarms_are_records_of_the_run(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        for record in (alarm(3), alarm(4, at_evaluation=True), alarm(4), alarm(5)):
            writer.write(record)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["kind"], line["step"], line["code"]) for line in lines[:1]] == [("alarm", 3, "KD780")]
    assert lines[0]["numbers"] == {"loss": math.inf} and lines[0]["remedy"] == "r"
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.truncate_after(4, before_evaluation=True)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3, 4]


# small runs


def alarms_of(records: list[Record]) -> list[Alarm]:
    return [record for record in records if isinstance(record, Alarm)]


TOO_FAST = (
    "trainer.optimizer.kwargs.lr=300",
    "trainer.log_freq=2",
    "trainer.max_epoch=null",
    "trainer.max_iter=4",
)


def test_each_thing_is_told_once_with_numbers_and_remedy() -> None:
    told = alarms_of(train_all(spec_of(SPEC, *TOO_FAST)))
    assert len({one.code for one in told}) == len(told)
    told = [one for one in told if one.code == "KD785"]
    assert len(told) == 1 and told[0].step == 1 and told[0].level == "warning"
    assert told[0].numbers["change"] > alarms.OVERSHOT_FAR and told[0].numbers["lr"] == pytest.approx(300)
    assert told[0].message.startswith("KD785: updates larger than the weights, step 1: ")
    assert told[0].message.endswith(told[0].remedy)


def test_the_watch_can_stop_the_run_and_says_how_to_go_on() -> None:
    with pytest.raises(RunError) as stopped:
        train_all(spec_of(SPEC, "trainer.on_collapse=stop", *TOO_FAST))
    (found,) = stopped.value.diagnostics
    assert found.code == "KD785" and "times their norm" in found.message and stopped.value.exit_code == 1
    assert found.help is not None and "lower the lr" in found.help and "nothing was saved yet" in found.help


@pytest.mark.parametrize("word", ["warn", "stop"])
def test_a_student_at_chance_is_told_when_all_is_saved(word: str) -> None:
    still = ("trainer.optimizer.kwargs.lr=1e-6", f"trainer.on_collapse={word}")
    with run_of(spec_of(SPEC, *still)) as run:
        run.task.near_chance = lambda *_: True  # type: ignore[method-assign]
        if word == "warn":
            assert [one.code for one in alarms_of(list(train(run)))] == ["KD788"]
            return
        with pytest.raises(RunError) as stopped:
            list(train(run))
        (kept,) = checkpoints(run.folder.checkpoints)[:1]
        assert load_checkpoint(kept)["progress"]["over"] is True
    (found,) = stopped.value.diagnostics
    assert found.code == "KD788" and found.help is not None
    assert f"{kept.name} is whole" in found.help and "--resume trainer.on_collapse=warn" in found.help
    (*_, finished) = train_all(spec_of(SPEC, still[0], "trainer.on_collapse=warn"), resume=True)
    assert isinstance(finished, Finished)


def test_a_resumed_run_remembers_what_it_saw() -> None:
    whole = spec_of(SPEC, "trainer.log_freq=3", "saver.save_dir=whole")
    train_all(whole)
    half = spec_of(SPEC, "trainer.log_freq=3", "saver.save_dir=half")
    with run_of(half) as run:
        for record in train(run):
            if isinstance(record, Step) and record.step == 6:
                break
    kept = checkpoints(Path("half/checkpoints"))
    memory = load_checkpoint(kept[0])["progress"]["watch"]
    assert memory["stage"] == 0 and memory["starts"].keys() == {"task.loss", "mimic_job0.teacher0.loss"}
    assert sum(memory["targets"]) == 40 and memory["pulls"]["task.loss"]
    train_all(half, resume=True)
    last = [
        load_checkpoint(checkpoints(Path(f"{name}/checkpoints"))[0])["progress"]["watch"]
        for name in ("whole", "half")
    ]
    assert last[0] == last[1]


def test_labels_counted_together_are_those_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an epoch of 50 batches, so that nothing is judged before the checkpoint."""
    changes = (
        "trainer.max_iter=50",
        "dataset.train.dataset.kwargs.num_samples=800",
        "trainer.max_epoch=null",
    )
    memories = []
    for name in ("together", "alone"):
        train_all(spec_of(SPEC, *changes, f"saver.save_dir={name}"))
        memories.append(load_checkpoint(checkpoints(Path(f"{name}/checkpoints"))[0])["progress"]["watch"])
        monkeypatch.setattr(GuessedClasses, "labels", lambda *_: None)
        monkeypatch.setattr(GuessedClasses, "targets", lambda _, batch: torch.bincount(batch["labels"]))
    assert sum(memories[0]["targets"]) == 400 and memories[0] == memories[1]


def test_a_term_is_felt_by_the_share_of_its_weight() -> None:
    """Ten steps; the loss's warm-up has 0, 1/3 and 2/3 of the weight first."""
    features = ("mimic.teacher0.mimic_name=[model.layer3]", "mimic.student.mimic_name=[model.layer3]")
    changes = ("mimic.cfgs={loss: {type: l2_loss}}", "mimic.adapter=auto", "mimic.loss_weight=5", *features)
    (plan,) = [r for r in train_all(spec_of(SPEC, *changes)) if isinstance(r, Plan)]
    assert set(plan.constants) == {TERM} and plan.constants[TERM] > 0
    memory = load_checkpoint(checkpoints(Path("runs/small/checkpoints"))[0])["progress"]["watch"]
    assert memory["felt"] == {TERM: pytest.approx(8.0)}


def test_the_watch_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ("trainer.log_freq=1", "trainer.ema.kwargs.decay=0.5", "trainer.accumulate_steps=2")
    train_all(spec_of(SPEC, *changes, "saver.save_dir=with"))
    for name in ("begin", "end", "before_update", "differentiate", "evaluation"):
        monkeypatch.setattr(Looks, name, lambda *_: nullcontext())
    train_all(spec_of(SPEC, *changes, "saver.save_dir=without"))
    one, other = (
        load_checkpoint(checkpoints(Path(f"{name}/checkpoints"))[0]) for name in ("with", "without")
    )
    assert one["progress"]["watch"]["lr"] > 0 and other["progress"]["watch"]["lr"] == 0
    assert all(torch.equal(one["trainee"][name], other["trainee"][name]) for name in one["trainee"])
    assert torch.equal(one["processes"][0]["generators"]["cpu"], other["processes"][0]["generators"]["cpu"])


# whole runs

SHORT = ("trainer.test_freq=100", "trainer.save_freq=100", "trainer.log_freq=10")


def outcome(name: str, *changes: str, epochs: int = 6) -> tuple[set[str], float, list[Alarm]]:
    """Codes that a sample's shortened run ends with, of alarms or of its error; its top-1; its alarms."""
    length = [f"trainer.max_epoch={epochs}", f"trainer.lr_scheduler.kwargs.T_max={epochs}"]
    told: list[Alarm] = []
    codes: set[str] = set()
    top1 = 0.0
    try:
        with run_of(read(str(SAMPLES / f"{name}.yaml"), [*length, *SHORT, *changes])) as run:
            for record in train(run):
                told += [record] if isinstance(record, Alarm) else []
                top1 = record.metrics.get("top1", top1) if isinstance(record, Evaluation) else top1
    except RunError as error:
        codes |= {found.code for found in error.diagnostics}
    return codes | {one.code for one in told}, top1, told


def dead_units(folder: Path) -> str:
    """Weights of the digits student whose ReLUs never open."""
    with run_of(read(str(SAMPLES / "digits_student.yaml"), [f"saver.save_dir={folder / 'made'}"])) as run:
        state = run.student.state_dict()
    for name in state:
        if "bn" in name and name.endswith("bias"):
            state[name] = torch.full_like(state[name], -100.0)
    path = folder / "dead.safetensors"
    save_safetensors(state, path, {})
    return f"saver.pretrain_model={path}"


SGD, ADAM = "trainer.optimizer.kwargs", "trainer.optimizer={type: Adam, kwargs: {lr: %s}}"
NORMALIZE = (
    "dataset.%s.dataset.kwargs.transformer="
    "[{type: to_tensor}, {type: normalize, kwargs: {mean: [%s], std: [%s]}}]"
)

COLLAPSED: dict[str, tuple[str, ...]] = {
    "lr 100": (f"{SGD}.lr=100", f"{SGD}.momentum=0", f"{SGD}.nesterov=false"),
    "lr 1e-12": (f"{SGD}.lr=1e-12",),
    "a gradient clipped to nothing": ("trainer.clip_grad_norm=1e-12", f"{SGD}.weight_decay=0"),
    "weights decayed to nothing": (f"{SGD}.weight_decay=20", f"{SGD}.momentum=0", f"{SGD}.nesterov=false"),
    "a momentum that never lets go": (f"{SGD}.lr=5", f"{SGD}.momentum=0.9999"),
    "dampening 1": (f"{SGD}.momentum=0.5", f"{SGD}.dampening=1", f"{SGD}.nesterov=false", f"{SGD}.lr=0.001"),
    "ascent": (f"{SGD}.maximize=true", f"{SGD}.momentum=0", f"{SGD}.nesterov=false"),
    "Adam, lr 10": (ADAM % 10,),
    "Adam, lr 1e-12": (ADAM % 1e-12,),
    "AdamW that decays all": ("trainer.optimizer={type: AdamW, kwargs: {lr: 0.02, weight_decay: 50}}",),
    "Adadelta, lr 1e-9": ("trainer.optimizer={type: Adadelta, kwargs: {lr: 1.0e-9}}",),
    "a schedule of nothing": (
        "trainer.lr_scheduler={type: ConstantLR, warmup_register_type: no_scale_lr, "
        "kwargs: {factor: 1.0e-12, total_iters: 1000}}",
    ),
    "a schedule that explodes": (
        "trainer.lr_scheduler={type: MultiStepLR, warmup_register_type: no_scale_lr, "
        "kwargs: {milestones: [1], gamma: 100000}}",
    ),
    "a warm-up longer than the run": (
        "trainer.lr_scheduler.warmup_iter=100000",
        "trainer.lr_scheduler.warmup_type=linear",
        "trainer.lr_scheduler.warmup_ratio=1.0e-9",
    ),
    "an average that never moves": ("trainer.ema.kwargs.decay=0.999999999",),
    "an average too slow for the run": ("trainer.ema.kwargs.decay=0.999",),
    "one bias alone trains": (
        "net=[{name: model, type: cifar_resnet8, kwargs: {num_classes: 10, in_channels: 1, widths: [2, 2, 4, 8]}}, "
        "{name: self, type: self, kwargs: {freeze_patterns: "
        "[model.conv1, model.bn1, model.layer1, model.layer2, model.layer3, model.fc.weight]}}]",
    ),
    "a loss of next to nothing": (
        "net=[{name: model, type: cifar_resnet8, kwargs: {num_classes: 10, in_channels: 1, widths: [2, 2, 4, 8]}}, "
        "{name: post, type: base_cls_postprocess, kwargs: {cls_loss: {type: ce, kwargs: {loss_weight: 1.0e-12}}}}]",
        f"{SGD}.weight_decay=0",
    ),
    "pixels far from where they should be": (
        NORMALIZE % ("train", "1.0e+9", 1),
        NORMALIZE % ("test", "1.0e+9", 1),
    ),
    "pixels of next to nothing": (NORMALIZE % ("train", 0, "1.0e+9"), NORMALIZE % ("test", 0, "1.0e+9")),
    "dead from the start": ("DEAD",),
}
DISTILLED: dict[str, tuple[str, ...]] = {
    "a pull that drowns all": (TEACHER, "mimic.loss_weight=1.0e+9"),
    "distilled without labels, lr 50": (TEACHER, "mimic.task_loss=false", f"{SGD}.lr=50"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COLLAPSED, *DISTILLED])
def test_a_run_that_ends_at_chance_says_so(name: str, tmp_path: Path) -> None:
    sample = "digits_student" if name in COLLAPSED else "digits_kd"
    changes = [*{**COLLAPSED, **DISTILLED}[name]]
    if changes == ["DEAD"]:
        changes = [dead_units(tmp_path), f"{SGD}.weight_decay=0"]
    codes, top1, _ = outcome(sample, *changes)
    # The watch, the guard or the check of each step: whoever sees it first.
    assert any(code.startswith("KD7") for code in codes), (name, top1)
    assert top1 < 35, "the run is none that ends at chance"


FROM_ZERO = (
    "trainer.lr_scheduler.warmup_iter=110",
    "trainer.lr_scheduler.warmup_type=linear",
    "trainer.lr_scheduler.warmup_ratio=0",
)
NET = "{name: model, type: cifar_resnet8, kwargs: {num_classes: 10, in_channels: 1, widths: [2, 2, 4, 8]}}"
GOOD: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "a warm-up from 0": FROM_ZERO,
    "frozen parts": (
        f"net=[{NET}, {{name: self, type: self, kwargs: {{freeze_patterns: [model.conv1, model.layer1]}}}}]",
    ),
    "label smoothing": (
        f"net=[{NET}, {{name: post, type: base_cls_postprocess, "
        "kwargs: {cls_loss: {type: label_smooth_ce, kwargs: {smooth_ratio: 0.3, num_classes: 10}}}}]",
    ),
    "mixup": ("dataset.train.dataloader.kwargs.batch_fn={type: batch_mixup, kwargs: {num_classes: 10}}",),
    "an average": ("trainer.ema.kwargs.decay=0.95",),
    "accumulated": ("trainer.accumulate_steps=2", "trainer.log_freq=3"),
    "every step is looked at": ("trainer.log_freq=1",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_a_good_run_has_no_alarm(name: str) -> None:
    codes, top1, told = outcome("digits_student", *GOOD[name], epochs=14)
    assert not codes, [one.message for one in told]
    assert top1 > 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [(), ("mimic.task_loss=false",), ("mimic.warm_up_iters=60",)],
    ids=["kd", "label-free", "loss warm-up"],
)
def test_a_good_distillation_has_no_alarm(changes: tuple[str, ...]) -> None:
    codes, top1, told = outcome("digits_kd", TEACHER, *changes, epochs=14)
    assert not codes, [one.message for one in told]
    assert top1 > 60


FEATURES = ("mimic.warm_up_iters=30",)
TAUGHT: dict[str, tuple[str, ...]] = {
    "as it is": FEATURES,
    "with its task's loss off": (*FEATURES, "mimic.task_loss=false"),
}
UNTAUGHT: dict[str, tuple[str, ...]] = {
    "a norm before what is normalised": (
        *FEATURES,
        "mimic.adapter={type: auto, kwargs: {norm: bn}}",
        f"{SGD}.lr=3.0e-4",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TAUGHT, *UNTAUGHT])
def test_a_term_that_never_gets_below_a_constant_is_told(name: str) -> None:
    changes = {**TAUGHT, **UNTAUGHT}[name]
    teacher = f"mimic.teacher0.teacher_weight={SAMPLES / 'weights/digits_teacher.safetensors'}"
    codes, _, told = outcome("digits_feature", teacher, *changes, epochs=14)
    assert ("KD790" in codes) is (name in UNTAUGHT), [one.message for one in told]
    assert len([one for one in told if one.code == "KD790"]) <= 1


@pytest.mark.slow
def test_a_stage_of_hints_alone_is_no_matter_of_the_task() -> None:
    parsed = read(str(SAMPLES / "digits_stages.yaml"), [*SHORT])
    with run_of(parsed, places=parsed.places) as run:
        assert not alarms_of(list(train(run)))


@pytest.mark.slow
def test_hints_alone_leave_the_classifier_at_chance_without_an_alarm() -> None:
    changes = (TEACHER, "mimic.task_loss=false", "mimic.student.mimic_name=[model.layer2]")
    codes, top1, told = outcome(
        "digits_kd",
        *changes,
        "mimic.teacher0.mimic_name=[model.layer2]",
        "mimic.cfgs={loss: {type: l2_loss}}",
        "mimic.adapter=auto",
    )
    assert top1 < 30 and not codes, [one.message for one in told]
