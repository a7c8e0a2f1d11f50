"""The proof's arithmetic, its choice of weights and its specs; no training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from kdcli.spec.parse import parse
from tests.benchmarks.proof import TUNING_SEED, Proof, trained, write
from tests.benchmarks.proof_pairs import FAMILIES, Fashion, Pair, Spec, Stamps

COST = {"train": 1.5, "unlabelled": 2.5, "probe": 0.5, "once": 10.0}


def pairs(folder: Path) -> list[Pair]:
    return [Stamps(folder), Fashion()]


def proof_of(pair: Pair, folder: Path) -> Proof:
    return Proof(pair=pair, folder=folder, steps=100, tune_steps=40)


def test_every_row_is_a_right_spec_of_the_steps_it_has(tmp_path: Path) -> None:
    for pair in pairs(tmp_path):
        for name, row in pair.rows.items():
            for part in row.parts:
                spec = pair.spec(name, part, weight=2.0, seed=3, steps=50, on="test")
                parsed = parse(yaml.safe_dump(spec, sort_keys=False), "spec.yaml", base_dir=None).spec
                assert (parsed.trainer.max_iter, parsed.runtime.random_seed) == (50, 3)
                assert bool(parsed.mimic) == bool(row.weights or part == "unlabelled")


def test_weights_are_chosen_on_data_that_the_table_does_not_have(tmp_path: Path) -> None:
    stamps, fashion = pairs(tmp_path)
    specs = {on: stamps.spec("kd", "train", weight=1.0, seed=1, steps=5, on=on) for on in ("val", "test")}
    roots = {on: spec["dataset"]["test"]["dataset"]["kwargs"]["root"] for on, spec in specs.items()}
    assert roots == {"val": str(tmp_path / "data" / "val"), "test": str(tmp_path / "data" / "test")}
    held = {on: fashion.spec("dkd", "train", weight=1.0, seed=1, steps=5, on=on)["dataset"].get("hold_out")
            for on in ("val", "test")}  # fmt: skip
    assert held == {"val": 0.1, "test": None}


def test_twelve_methods_one_a_family() -> None:
    assert len(FAMILIES) == 12 == len(set(FAMILIES.values())) and set(Fashion.rows) == {"alone", *FAMILIES}


def test_a_weight_multiplies_the_authors_own() -> None:
    for name in FAMILIES:
        specs = [Fashion().spec(name, "train", weight=w, seed=1, steps=5, on="val") for w in (1.0, 3.0)]
        weights = [spec["mimic"]["loss_weight"] for spec in specs]
        assert weights[1] == 3.0 * weights[0]


def test_steps_at_equal_cost_by_hand(tmp_path: Path) -> None:
    """What is paid once comes off first: (100 - 10) / 1.5 steps; two parts share the steps as the row says."""
    one = proof_of(Stamps(tmp_path), tmp_path)
    write(tmp_path / "cost.json", dict.fromkeys(one.pair.rows, COST))
    assert one.steps_at_equal_cost("kd_cached") == 60 and one.ratio("kd_cached") == pytest.approx(1.6)
    assert one.steps_at_equal_cost("first_features") == 45 and one.ratio("first_features") == pytest.approx(
        2.1
    )
    assert one.steps_at_equal_cost("first_features_probe") == 60
    assert one.steps_at_equal_cost("alone") == 100 and one.ratio("alone") == 1.0


def test_the_best_weight_on_the_validation_data_is_taken_and_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal ones the smallest; an interrupted choice goes on with the weights that are missing."""
    top1 = {0.03: 50.0, 0.1: 60.0, 0.3: 60.0, 1: 40.0, 3: 30.0, 10: 20.0}
    trainings: list[tuple[float, int, int, str]] = []

    def train(self: Proof, row: str, *, weight: float, seed: int, steps: int, on: str) -> Spec:
        trainings.append((weight, seed, steps, on))
        return {"last": {"top1": top1[weight]}}

    monkeypatch.setattr(Proof, "train", train)
    one = proof_of(Fashion(), tmp_path)
    write(tmp_path / "weights_40.json", {"dkd": {"0.03": 50.0, "10": 20.0}})
    assert one.weight("dkd") == 0.1 and one.weight("alone") == 0.0
    assert trainings == [(weight, TUNING_SEED, 40, "val") for weight in (0.1, 0.3, 1, 3)]
    assert one.weight("dkd") == 0.1 and len(trainings) == 4


def test_the_table_says_of_how_many_seeds_each_cell_is(tmp_path: Path) -> None:
    one = proof_of(Stamps(tmp_path), tmp_path)
    write(tmp_path / "cost.json", {"kd": COST})
    write(tmp_path / "weights_40.json", {"kd": {"1": 10.0, "2": 30.0, "4": 20.0}})
    results = {
        "teacher": {"top1": 47.0},
        "alone": {"steps 100": {"1": {"top1": 30.0}, "2": {"top1": 32.0}}, "steps 7": {"1": {"top1": 99.0}}},
        "kd": {"cost 100": {"1": {"top1": 40.0}}},
    }
    write(tmp_path / "results.json", results)
    rows = [line for line in one.table().splitlines() if line.startswith("|")][2:]
    assert rows == [
        "| `kd_loss` T 4 | 2 | 1.60 | 60 | 40.00 (1) | - |",
        "| **student alone** |  | 1.00 | 100 | 31.00 ± 1.41 (2) | 31.00 ± 1.41 (2) |",
        "| the teacher | | | | 47.00 | |",
    ]


def test_a_training_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished: not run; with a checkpoint: resumed; else begun anew."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        (tmp_path / "run" / "finished.json").write_text(json.dumps({"last": {"top1": 1.0}}))

    monkeypatch.setattr(subprocess, "run", run)
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    assert trained({}, out)["last"] == {"top1": 1.0} and commands[-1][-1] == "--overwrite"
    trained({}, out)
    assert len(commands) == 1
    (out / "finished.json").unlink()
    (out / "checkpoints" / "step_1.pt").touch()
    trained({}, out)
    assert len(commands) == 2 and commands[-1][-1] == "--resume"
