"""The proof's arithmetic, its choice of weights and its specs, and the pure logic of its peers; nearly no training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from kdcli.distill.cached import CachedTeacher
from kdcli.spec.parse import parse
from kdcli.training.optim import LearningRate
from tests.benchmarks import foundation, proof, proof_pairs, step_cost
from tests.benchmarks.peers.lightly import told_rate
from tests.benchmarks.peers.process import run
from tests.benchmarks.peers.timm_kd import RATE, share
from tests.benchmarks.peers.ultralytics_detect import last_ap, yolo_lines
from tests.benchmarks.proof import TUNING_SEED, Proof, measured_cost, timed_spec, trained, write
from tests.benchmarks.proof_pairs import FAMILIES, UNLABELLED, Fashion, Pair, Row, Spec, Stamps
from tests.gpu.lines import Machine, images_spec

COST = {"train": 1.5, "unlabelled": 2.5, "wide": 2.5, "probe": 0.5, "once": 10.0}


def pairs(folder: Path) -> list[Pair]:
    return [Stamps(folder), Fashion()]


def proof_of(pair: Pair, folder: Path) -> Proof:
    return Proof(pair=pair, folder=folder, steps=100, tune_steps=40)


def write_cost(one: Proof, *rows: str, **changes: float) -> None:
    costs = {row: {"cost": COST | changes, "settings": one._cost_settings(row)} for row in rows}
    write(one.folder / "cost.json", costs)


def result(one: Proof, row: str, top1: float, *, seed: int, steps: int, weight: float = 0.0) -> Spec:
    given: dict[str, Any] = {"seed": seed, "steps": steps, "weight": weight}
    return {"top1": top1, **given, "settings": one.settings(one.specs(row, **given, on="test"))}


def test_every_row_is_a_right_spec_of_the_steps_it_has(tmp_path: Path) -> None:
    for pair in pairs(tmp_path):
        for name, row in pair.rows.items():
            for part in row.parts:
                spec = pair.spec(name, part, weight=2.0, seed=3, steps=50, on="test")
                parsed = parse(yaml.safe_dump(spec, sort_keys=False), "spec.yaml", base_dir=None).spec
                assert (parsed.trainer.max_iter, parsed.runtime.random_seed) == (50, 3)
                losses = row.weights if isinstance(pair, Fashion) else row.losses
                distilled = row.first if part in UNLABELLED else losses if part == "train" else ()
                assert bool(parsed.mimic) == bool(distilled)


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
    write_cost(one, *one.pair.rows)
    assert one.steps_at_equal_cost("kd_cached") == 60 and one.ratio("kd_cached") == pytest.approx(1.6)
    assert one.steps_at_equal_cost("first_features") == 45 and one.ratio("first_features") == pytest.approx(
        2.1
    )
    assert one.steps_at_equal_cost("first_features_probe") == 60
    assert one.steps_at_equal_cost("alone") == 100 and one.ratio("alone") == 1.0


def test_what_is_paid_once_may_leave_no_step_at_equal_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = proof_of(Stamps(tmp_path), tmp_path)
    write_cost(one, "kd_cached", once=120.0)
    monkeypatch.setattr(Proof, "train", lambda *_, **__: pytest.fail("trained"))
    one.measure("kd_cached", 1, "cost")
    assert one.steps_at_equal_cost("kd_cached") == -13
    write(tmp_path / "results.json", {"kd_cached": {}})
    assert one.table().splitlines()[-1].endswith("| - | 2.70 | - | - | - |")


def test_a_cost_of_other_settings_is_measured_again_where_the_data_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def child(*words: str, **_: int) -> dict[str, float]:
        asked.append(words)
        return COST

    monkeypatch.setattr(proof, "child", child)
    one = Proof(pair=Fashion(Path("images")), folder=tmp_path / "fashion", steps=100, tune_steps=40)
    write(one.folder / "cost.json", {"dkd": {"train": 9.0, "once": 0.0}})
    assert one.cost("dkd") == COST == one.cost("dkd")
    assert asked == [
        (
            *("tests.benchmarks.proof", "--pair", "fashion", "--folder", str(tmp_path)),
            *("--measure", "dkd", "--root", "images"),
        )
    ]
    monkeypatch.setitem(proof_pairs.KWARGS, "dkd", {"warmup_epochs": 1})
    assert one.known_cost("dkd") is None and one.known_cost("kd_loss") is None


def test_steps_are_timed_without_data_workers(tmp_path: Path) -> None:
    for pair in pairs(tmp_path):
        for name, row in pair.rows.items():
            for part in row.parts:
                data = timed_spec(pair, name, part)["dataset"]
                kwargs = data["train"].get("dataloader", data["dataloader"])["kwargs"]
                assert kwargs["num_workers"] == 0
                assert ("batch_fn" in kwargs) is (row.mixup and part not in UNLABELLED)


class Tiny(Pair):
    """Made-up images of 8 pixels."""

    rows: ClassVar = {
        "alone": Row(says="alone"),
        "cached": Row(says="cached", weights=(1.0,), views=8, parts={"train": 0.5, "labels": 0.5}),
    }
    images, batch, head = 48, 8, "Tiny."

    def __init__(self, folder: Path) -> None:
        self.folder, self.teacher = folder, folder / "none"

    def spec(self, row: str, part: str, *, weight: float, seed: int, steps: int, on: str) -> Spec:
        spec = images_spec(Machine(torch.device("cpu"), self.folder), batch=self.batch, steps=4)
        spec["trainer"]["max_iter"] = steps
        if row == "alone" or part == "labels":
            spec["runtime"]["runner"]["type"] = "base"
            del spec["mimic"], spec["teacher0"]
        else:
            spec["mimic"]["teacher0"]["cache"] = {"views": 8}
        return spec


def test_a_cached_teacher_is_filled_before_its_steps_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six batches a view, one view and two; no step of the 18 that follow fills any, nor a part without teacher."""
    for name, value in (("LEAST_PAIRS", 16), ("MOST_PAIRS", 16)):
        monkeypatch.setattr(step_cost, name, value)
    fills: list[int] = []
    fill = CachedTeacher.fill

    def watched(*given: Any) -> None:
        fills.append(len(fills))
        fill(*given)

    monkeypatch.setattr(CachedTeacher, "fill", watched)
    cost = measured_cost(Tiny(tmp_path), "cached")
    assert len(fills) == 3 * 6 and cost["once"] >= 0.0
    assert cost["train"] > 0.1 and cost["labels"] > 0.1


def test_the_best_weight_on_the_validation_data_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal ones the smallest; `train` knows which of them lie there finished, not the file of what was found."""
    top1 = {0.03: 50.0, 0.1: 60.0, 0.3: 60.0, 1: 40.0, 3: 30.0, 10: 20.0}
    trainings: list[tuple[float, int, int, str]] = []

    def train(self: Proof, row: str, *, weight: float, seed: int, steps: int, on: str) -> Spec:
        trainings.append((weight, seed, steps, on))
        return {"last": {"top1": top1[weight]}}

    monkeypatch.setattr(Proof, "train", train)
    one = proof_of(Fashion(), tmp_path)
    write(tmp_path / "weights_40.json", {"dkd": {"0.03": 99.0, "10": 20.0}})
    assert one.weight("dkd") == 0.1 and one.weight("alone") == 0.0
    assert trainings == [(weight, TUNING_SEED, 40, "val") for weight in top1]
    assert proof.read(tmp_path / "weights_40.json")["dkd"] == {
        f"{weight:g}": best for weight, best in top1.items()
    }


def test_the_table_says_of_how_many_seeds_each_cell_is_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other settings gave is not there, nor what has another number of steps than its cost allows now."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("run"))
    one = proof_of(Stamps(tmp_path), tmp_path)
    write_cost(one, "kd")
    old = result(one, "srd", 88.0, seed=1, steps=100, weight=1.0) | {"settings": "another"}
    results = {
        "teacher": {"top1": 47.0},
        "alone": {
            "steps 100": {
                str(seed): result(one, "alone", top1, seed=seed, steps=100)
                for seed, top1 in ((1, 30.0), (2, 32.0))
            },
            "steps 7": {"1": result(one, "alone", 99.0, seed=1, steps=7)},
        },
        "kd": {
            "cost 100": {
                "1": result(one, "kd", 40.0, seed=1, steps=60, weight=2),
                "2": result(one, "kd", 99.0, seed=2, steps=61, weight=4),
            }
        },
        "srd": {"steps 100": {"1": old, "2": {"top1": 77.0}}},
    }
    write(tmp_path / "results.json", results)
    rows = [line for line in one.table().splitlines() if line.startswith("|")][2:]
    assert rows == [
        "| `kd_loss` T 4 | 2 | 1.60 | 60 | 40.00 (1) | - |",
        "| **student alone** |  | 1.00 | 100 | 31.00 ± 1.41 (2) | 31.00 ± 1.41 (2) |",
        "| `srd` on the pooled vectors | - | - | - | - | - |",
        "| the teacher | | | | 47.00 | |",
    ]


def test_a_training_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished: not run; with a checkpoint: resumed; else begun anew, as by another spec or a file made since."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        (out / "finished.json").write_text(json.dumps({"last": {"top1": 1.0}}))

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
    (out / "checkpoints" / "step_1.pt").touch()
    trained({"seed": 2}, out)
    assert len(commands) == 3 and commands[-1][-1] == "--overwrite"
    weights = tmp_path / "student.safetensors"
    weights.touch()
    os.utime(weights, (1, 1))
    trained({"seed": 2}, out, [weights, tmp_path / "none"])
    assert len(commands) == 3
    os.utime(weights, (2**32, 2**32))
    trained({"seed": 2}, out, [weights])
    assert len(commands) == 4 and commands[-1][-1] == "--overwrite"


def test_a_foundation_run_of_the_same_spec_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its keys are ordered."""
    commands: list[list[str]] = []
    given = ("live", 1, tmp_path / "data", "val", 50)
    out = tmp_path / "live_val_50_1"

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        (out / "finished.json").write_text(json.dumps({"run": len(commands)}))

    monkeypatch.setattr(subprocess, "run", run)
    out.mkdir()
    (tmp_path / f"{out.name}.yaml").write_text(yaml.safe_dump(foundation.spec(*given, out), sort_keys=True))
    (out / "finished.json").write_text(json.dumps({"run": 0}))
    assert foundation.run(*given, tmp_path) == {"run": 0} and not commands
    monkeypatch.setattr(foundation, "BATCH", 64)
    assert foundation.run(*given, tmp_path) == {"run": 1} == foundation.run(*given, tmp_path)
    assert yaml.safe_load((tmp_path / f"{out.name}.yaml").read_text()) == foundation.spec(*given, out)


@pytest.mark.parametrize("steps", [8, 25, 1125])
def test_the_peers_rate_is_that_of_the_rows_spec(steps: int, tmp_path: Path) -> None:
    spec = Stamps(tmp_path).spec("kd", "train", weight=1.0, seed=1, steps=steps, on="test")
    trainer = parse(yaml.safe_dump(spec, sort_keys=False), "spec.yaml", base_dir=None).spec.trainer
    assert trainer.optimizer.kwargs["lr"] == RATE
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    rate = LearningRate(
        optimizer,
        trainer.lr_scheduler,
        batch_size=Stamps.batch,
        world_size=1,
        steps_per_epoch=Stamps.images // Stamps.batch,
        path=(),
    )
    for step in range(steps):
        assert rate.now == pytest.approx(RATE * share(step, steps), rel=1e-6, abs=1e-12)
        rate.advance()


def test_boxes_for_yolo_by_hand() -> None:
    """Classes count from 0 in the order of COCO's ids; a crowd is no object; an image without boxes has no line."""
    coco = {
        "categories": [{"id": 7, "name": "fruit"}, {"id": 3, "name": "birds"}],
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100},
            {"id": 2, "file_name": "b.jpg", "width": 10, "height": 10},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [20, 10, 40, 50], "iscrowd": 0},
            {"image_id": 1, "category_id": 3, "bbox": [0, 0, 200, 100]},
            {"image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2], "iscrowd": 1},
        ],
    }
    assert yolo_lines(coco) == {
        "a.jpg": ["1 0.200000 0.350000 0.200000 0.500000", "0 0.500000 0.500000 1.000000 1.000000"],
        "b.jpg": [],
    }


def test_the_last_epoch_of_a_peers_table_counts() -> None:
    table = "epoch, metrics/mAP50(B), metrics/mAP50-95(B)\n1, 0.9, 0.8\n2, 0.5, 0.25\n"
    assert last_ap(table) == {"ap": 25.0, "ap50": 50.0}


def test_the_rate_that_lightly_is_told_by_hand() -> None:
    """A quarter of its reference batch halves what it is told."""
    assert told_rate(0.004, 384) == pytest.approx(0.008)
    assert told_rate(0.004, 1536) == 0.004


def test_what_a_peers_command_takes_is_its_own(tmp_path: Path) -> None:
    used = run([sys.executable, "-c", "print('said')"], tmp_path / "logs" / "log")
    assert used.seconds > 0.0 and used.cpu_seconds > 0.0 and used.peak_mb > 1.0
    assert (tmp_path / "logs" / "log").read_text() == "said\n"
    with pytest.raises(subprocess.CalledProcessError):
        run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log")
