"""The storage of a sweep: the next trial depends on the trials before it alone, whoever asks and after any end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdcli.commands.sweep import _to_record
from kdcli.errors import Diagnostic, Interrupted, RunError
from kdcli.reference.tables import tables
from kdcli.report.sweep_results import Seeded, SweepResults, cost_text, results_text, verdict
from kdcli.spec.parse import parse
from kdcli.spec.sweep import Space, space_of
from kdcli.sweep.cost import shortened
from kdcli.sweep.prepare import Measured, Trials
from kdcli.sweep.study import Study, Trial, by_chance, need_optuna, require_same
from tests.spec.test_sweep import SPEC

pytest.importorskip("optuna")
RANGES = (
    "  mimic.loss_weight: {low: 0.1, high: 10, log: true}\n  mimic.cfgs.loss.kwargs.T: {low: 1, high: 8}\n"
)
LISTS = "  method: [kd_loss, pkd]\n  mimic.cfgs.loss.kwargs.T: [1, 2, 4]\n"
need_optuna()


@contextmanager
def study(folder: Path, block: str, limit: int = 12, **more: object) -> Iterator[Study]:
    parsed = parse(SPEC + block, "cfg.yaml")
    space = space_of(parsed)
    assert space is not None
    facts = {"space": space.facts()}
    options = {"total_steps": 90, "halves": False, "seed": 0, "facts": facts, **more}
    made = Study(folder, parsed.spec, space, tables().losses, limit=limit, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def score(trial: Trial) -> float:
    """A made-up result: best at weight 1, and at T 4."""
    return -abs(float(trial.values.get("mimic.loss_weight") or 1) - 1) - abs(
        float(trial.values["mimic.cfgs.loss.kwargs.T"] or 0) - 4
    )


def run(made: Study, until: int = 100, result: Callable[[Trial], float] = score) -> None:
    for _ in range(until):
        with made.next() as taken:
            if taken is None:
                return
            trial, handle = taken
            made.tell(handle, "complete", result(trial), metrics={"top1": result(trial)}, primary="top1")


@pytest.mark.slow
def test_a_sweep_that_goes_on_proposes_what_it_would_have(tmp_path: Path) -> None:
    with study(tmp_path / "whole", RANGES) as whole:
        run(whole)
        expected = [(one.number, dict(one.values)) for one in whole.trials()]
    for _ in range(3):  # a process for some trials each, the last for those left
        with study(tmp_path / "parts", RANGES) as part:
            run(part, 4)
            # One that ends without a word: the trial stays open, and is run again with its values.
            with part.next() as taken:
                before = None if taken is None else dict(taken[0].values)
        with study(tmp_path / "parts", RANGES) as part, part.next() as taken:
            assert (None if taken is None else dict(taken[0].values)) == before
    with study(tmp_path / "parts", RANGES) as part:
        run(part)
        assert [(one.number, dict(one.values)) for one in part.trials()] == expected
    assert len(expected) == 12


@pytest.mark.slow
def test_two_at_once_never_run_one_trial(tmp_path: Path) -> None:
    with study(tmp_path, RANGES, limit=3) as one, study(tmp_path, RANGES, limit=3) as other:
        with one.next() as first, other.next() as second, one.next() as third, other.next() as fourth:
            assert first is not None
            assert second is not None
            assert third is not None
            assert [first[0].number, second[0].number, third[0].number] == [0, 1, 2]
            assert fourth is None


@pytest.mark.slow
def test_a_trial_that_ends_while_another_process_looks_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with study(tmp_path, RANGES) as one, study(tmp_path, RANGES) as other:
        with one.next() as taken:
            assert taken is not None and taken[0].number == 0
            seen = other.study.get_trials(deepcopy=True)
            one.tell(taken[1], "complete", 1.0, metrics={}, primary="top1")
        read = other.study.get_trials

        def late(*, states: object = None, **more: object) -> object:
            # The list as it was before the trial ended, where running trials are asked for.
            return seen if states is not None and len(states) == 1 else read(states=states, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(other.study, "get_trials", late)
        with other.next() as taken:
            assert taken is not None and taken[0].number == 1


@pytest.mark.slow
def test_a_space_of_lists_is_gone_through_once_and_what_means_nothing_is_left_out(tmp_path: Path) -> None:
    with study(tmp_path, LISTS, limit=20, first={"method": "kd_loss", "mimic.cfgs.loss.kwargs.T": 4}) as made:
        assert made.limit == 4
        found = []
        while True:
            with made.next() as taken:
                if taken is None:
                    break
                found.append(tuple(taken[0].values.values()))
                made.tell(taken[1], "complete", 0.0)
    # The spec as it is written comes first; pkd has no T.
    assert found[0] == ("kd_loss", 4)
    assert sorted(found, key=str) == [("kd_loss", 1), ("kd_loss", 2), ("kd_loss", 4), ("pkd",)]


@pytest.mark.slow
def test_halving_stops_what_lies_behind(tmp_path: Path) -> None:
    with study(tmp_path, RANGES, halves=True) as made:
        stopped = []
        for value in (5.0, 4.0, 3.0, 4.5, 6.0):
            with made.next() as taken:
                assert taken is not None
                assert not made.stops(taken[1], 29, 0.0, "AP")
                stopped.append(made.stops(taken[1], 30, value, "AP"))
                made.tell(taken[1], "stopped" if stopped[-1] else "complete", None if stopped[-1] else value)
    # A first look after a third of 90 steps; the best half goes on.
    assert stopped == [False, True, True, False, False]


def test_what_two_accuracies_differ_by_chance_by_hand() -> None:
    """√(2 · 0.2 · 0.8 / 160) = 0.0447; of all or none of the samples nothing is known to differ."""
    assert by_chance(20.0, 160) == pytest.approx(4.4721, abs=1e-4)
    assert by_chance(0.0, 160) == by_chance(100.0, 160) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("primary", "expected"), [("top1", [False, False, True]), ("AP", [False, True, True])]
)
def test_halving_stops_no_accuracy_that_lies_behind_by_chance(
    tmp_path: Path, primary: str, expected: list[bool]
) -> None:
    """Of 160 samples 31 for 33: chance is 4.4 points; 25 are 5.0 behind, with a chance of 4.1."""
    with study(tmp_path, RANGES, halves=True, held=160) as made:
        stopped = []
        for value in (20.625, 19.375, 15.625):
            with made.next() as taken:
                assert taken is not None
                stopped.append(made.stops(taken[1], 30, value, primary))
                if stopped == [False, False]:  # it is looked at again after two thirds
                    assert not made.stops(taken[1], 40, 1.0, primary)
                    assert not made.stops(taken[1], 60, 30.0, primary)
                made.tell(taken[1], "stopped" if stopped[-1] else "complete", None if stopped[-1] else value)
        assert stopped == expected
        with made.next() as taken:
            assert taken is not None
            assert made.stops(taken[1], 30, 19.0, primary) is (primary == "AP")
            if primary == "top1":
                assert made.stops(taken[1], 60, 20.0, primary)  # 30 there of the second, chance 4.5


@pytest.mark.slow
def test_two_sweeps_of_one_folder(tmp_path: Path) -> None:
    with study(tmp_path, RANGES) as made:
        run(made, 1)
        facts = {"space": made.space.facts()}
    require_same(tmp_path, facts)
    with pytest.raises(RunError, match="another space") as raised:
        require_same(tmp_path, {"space": {"trainer.optimizer.kwargs.lr": [1, 2]}})
    assert raised.value.diagnostics[0].code == "KD836"
    with pytest.raises(RunError, match="another space"):
        require_same(tmp_path, {"space": "default"})
    require_same(tmp_path / "empty", facts)


@pytest.mark.slow
def test_a_trial_that_failed_is_no_rival(tmp_path: Path) -> None:
    """It leads at the first look and then fails: the next one may not be stopped for lying behind it."""
    with study(tmp_path, RANGES, halves=True) as made:
        stopped = []
        for value in (90.0, 50.0, 40.0):
            with made.next() as taken:
                assert taken is not None
                stopped.append(made.stops(taken[1], 30, value, "AP"))
                if len(stopped) == 1:
                    made.tell(taken[1], "failed", None, error="KD730: not finite")
                else:
                    made.tell(
                        taken[1], "stopped" if stopped[-1] else "complete", None if stopped[-1] else value
                    )
        assert stopped == [False, False, True]
        assert made.best is not None and made.best.number == 1


@pytest.mark.slow
def test_a_space_of_very_many_lists_is_not_counted_to_its_end(tmp_path: Path) -> None:
    """10 values each of 12 keys: a count of all would take days."""
    ten = ", ".join(str(number) for number in range(1, 11))
    block = "".join(f"  trainer.key{number}: [{ten}]\n" for number in range(12))
    with study(tmp_path, block, limit=5) as made:
        assert made.limit == 5
    with study(tmp_path / "few", LISTS, limit=50) as made:
        assert made.limit == 4


def test_what_is_recorded_of_a_failure() -> None:
    """A full disk and a signal are no trial's fault, an error of kdcli's own is not hidden."""
    assert _to_record(RunError.of("KD730", "a loss\nis not finite")) == "KD730: a loss is not finite"
    stop = Interrupted(Diagnostic(code="KD714", message="stopped", severity="warning"), 2)
    for error in (RunError.of("KD740", "cannot write x"), stop, AssertionError("own")):
        with pytest.raises(type(error)) as raised:
            _to_record(error)
        assert raised.value is error


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(RunError, match="Optuna") as raised:
        need_optuna()
    assert raised.value.diagnostics[0].help == "pip install 'kdcli[sweep]'"


def test_a_run_of_equal_cost_is_shorter_with_its_schedule() -> None:
    text = SPEC.replace("sweep:\n", "").replace(
        "trainer: {max_epoch: 1,",
        "trainer: {max_epoch: 6, lr_scheduler: {type: CosineAnnealingLR, kwargs: {T_max: 6}},",
    )
    assert shortened(parse(text, "cfg.yaml"), 1.5) == (
        "trainer.max_epoch=4",
        "trainer.lr_scheduler.kwargs.T_max=4.0",
    )
    assert shortened(parse(text, "cfg.yaml"), 1.0) == ()
    steps = text.replace("max_epoch: 6", "max_iter: 90")
    assert shortened(parse(steps, "cfg.yaml"), 1.2)[0] == "trainer.max_iter=75"


def test_the_best_is_measured_on_the_test_data_even_where_the_spec_holds_images_out(tmp_path: Path) -> None:
    parsed = parse(
        SPEC.replace("sweep:\n", "").replace("dataset:\n", "dataset:\n  hold_out: 0.5\n", 1), "cfg.yaml"
    )
    trials = Trials(
        parsed=parsed,
        space=Space(parameters=(), layers={}),
        losses=tables().losses,
        own=("dataset.hold_out=0.5",),
        cache=tmp_path,
    )
    assert trials.spec({}).spec.dataset.hold_out == 0.5
    assert trials.final({}).spec.dataset.hold_out is None


@pytest.mark.parametrize(
    ("best", "written", "said"),
    [
        # 1.78 1.34 1.11 -2 1.33 3.33 2.89 0 2.44 -0.22: mean 1.20, deviation 1.60, t 2.37, bound of 9: 2.26.
        (
            (93.11, 89.78, 91.33, 89.78, 91.11, 92.89, 91.33, 90.44, 91.33, 89.11),
            (91.33, 88.44, 90.22, 91.78, 89.78, 89.56, 88.44, 90.44, 88.89, 89.33),
            "better by 1.20 ± 1.60, at 7 of 10: better beyond the spread",
        ),
        ((78.88, 81.71, 81.35), (77.97, 79.88, 80.97), "at 3 of 3: no gain beyond the spread over seeds"),
        ((80.0, 81.0), (70.0, 71.0), "every seed of the best is above every seed as written"),
        ((70.0, 71.0), (80.0, 81.0), "every seed of the best is BELOW every seed as written"),
        ((70.0, 71.1, 72.0), (71.0, 72.0, 73.0), "at 0 of 3: WORSE beyond the spread"),
        ((70.0,), (60.0,), "one seed has no spread"),
    ],
)
def test_the_verdict_by_hand(best: tuple[float, ...], written: tuple[float, ...], said: str) -> None:
    rows = [
        Seeded(name=name, primary="top1", values=values, rising=values, seeds=tuple(range(len(values))))
        for name, values in (("best", best), ("as written", written))
    ]
    assert said in verdict(SimpleNamespace(seeded=rows))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "written", "tie", "trains"),
    [
        ((50.0, 60.0, 60.0, 60.0), (50.0, 51.0), "; as good on the held-out images: trial 3\n", True),
        ((60.0, 50.0, 40.0, 60.0), (90.0, 91.0), "; as good on the held-out images: trial 3\n", False),
        ((60.0, 50.0, 40.0, 59.0), (50.0, 51.0), "T 1\n", True),
    ],
)
def test_ties_are_told_and_a_spec_to_keep_is_not_left(
    values: tuple[float, ...], written: tuple[float, ...], tie: str, trains: bool
) -> None:
    made = [
        Trial(
            number=i,
            values={"T": 1 + i},
            state="complete",
            value=value,
            metrics={"top1": value},
            primary="top1",
        )
        for i, value in enumerate(values)
    ]
    made[2] = replace(made[2], same_as=1)
    best = max(made, key=lambda one: (one.value or 0.0, -one.number))
    rows = [
        Seeded(name=name, primary="top1", values=numbers, rising=numbers, seeds=(1, 2))
        for name, numbers in (("best", (80.0, 81.0)), ("as written", written))
    ]
    results = SweepResults(
        name="cfg",
        folder=Path("runs/cfg-sweep"),
        space=Space(parameters=(), layers={}),
        trials=tuple(made),
        best=best,
        importance={},
        seeded=tuple(rows),
        plan=Measured(steps=10, epochs=1, samples=90, held=10, even={}),
        share=0.1,
        command="kdcli train cfg.yaml",
    )
    text = results_text(results, "table")
    assert f"best: trial {best.number}, T {1 + best.number}" in text and tie in text
    assert ("train it: " in text) is trains


@pytest.mark.parametrize(
    ("held", "samples", "said"),
    [
        (10, 90, "with 10 held-out samples each is 10 points of an accuracy, so that trials lead by chance;"
         " `--hold-out 0.5` holds out more"),
        (100, 900, "each is a point of an accuracy, so that trials lead by chance; `--hold-out 0.2` holds out more"),
        (101, 909, None),
    ],
)  # fmt: skip
def test_few_held_out_samples_are_told(held: int, samples: int, said: str | None) -> None:
    plan = Measured(steps=10, epochs=1, samples=samples, held=held, even={})
    text = cost_text(
        Space(parameters=(), layers={}),
        4,
        plan,
        folder=Path("x"),
        share=0.1,
        halving=False,
        equal="steps",
        seeds=0,
        default=True,
        teachers=1,
    )
    assert ("warning" in text) is (said is not None) and (said is None or said in text)
