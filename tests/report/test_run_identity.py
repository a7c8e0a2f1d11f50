"""What a run was of, in words; and whether two are the same experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdcli.report.recorded_run import RecordedRun, read_run
from kdcli.report.run_identity import changed_keys, differences, facts_of, method_words, network_words
from tests.report.run_folders import make_run

NET = [{"name": "model", "type": "resnet18", "kwargs": {"num_classes": 10, "width": 16}}]


def data(kind: str = "digits", **kwargs: Any) -> dict[str, Any]:
    return {
        side: {
            "dataset": {"type": kind, "kwargs": {"split": side, **kwargs}},
            "batch_sampler": {"kwargs": {"batch_size": 64}},
        }
        for side in ("train", "test")
    }


def run_of(path: Path, **spec: Any) -> RecordedRun:
    """A run with a network and data, of which other parts of the spec may be given."""
    epochs = spec.pop("epochs", 1)
    return read_run(make_run(path, spec={"net": NET, "dataset": data(), **spec}, epochs=epochs))


def test_how_the_student_is_taught_is_no_difference(tmp_path: Path) -> None:
    alone = run_of(tmp_path / "a")
    taught = run_of(tmp_path / "b", teacher0=NET, mimic={"cfgs": {"loss": {"type": "kd_loss"}}})
    assert differences(alone, taught) == []
    assert changed_keys(alone, taught) == ["mimic", "teacher0"]


@pytest.mark.parametrize(
    ("change", "said", "fatal"),
    [
        ({"dataset": data("coco")}, "test data: coco (split test), not digits (split test)", True),
        ({"net": [{**NET[0], "type": "resnet34"}]}, "student network: resnet34 (width 16), not", False),
        ({"net": [{**NET[0], "kwargs": {"num_classes": 11, "width": 16}}]}, "with other arguments", False),
        ({"epochs": 2}, "steps: 40, not 20", False),
        ({"dataset": data(transformer=["flip"])}, "test images: prepared in another way", False),
    ],
)
def test_what_is_not_the_same_experiment(tmp_path: Path, change: Any, said: str, fatal: bool) -> None:
    found = differences(run_of(tmp_path / "a"), run_of(tmp_path / "b", **change))
    (named,) = [one for one in found if said in str(one)]
    assert named.fatal == fatal and any(one.fatal for one in found) == fatal


def test_the_samples_count_and_not_where_they_lie(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, dataset=data(root=name)) for name in "abc"]
    for run, digest in zip(runs, ("11", "11", "22"), strict=True):
        for side in ("train", "test"):
            (run.path / f"data_{side}_{digest}.tsv.gz").write_bytes(b"")
    same, moved, other = (read_run(run.path) for run in runs)
    assert differences(same, moved) == []
    assert [one.fatal for one in differences(same, other)] == [True, False]
    only = read_run(make_run(tmp_path / "d", spec={"net": NET, "dataset": data(root="a")}, epochs=1))
    assert differences(same, only) == [], "an older folder without lists is compared by its spec"


def test_networks_and_methods_in_words() -> None:
    assert network_words(NET) == "resnet18 (width 16)"
    modules = [*NET, {"name": "neck", "type": "FPN"}, {"name": "p", "type": "retina_post"}]
    assert network_words(modules) == "resnet18 (width 16), FPN"
    job = {
        "cfgs": {"a": {"type": "l2_loss"}, "b": {"type": "kd_loss"}},
        "student": {"mimic_name": list("vwxyz")},
    }
    assert method_words({"mimic": job}) == ["l2_loss + kd_loss on v, w, x, y and 1 more"]
    assert method_words({"mimic": {"mimic_as_jobs": True, "one": job, "two": {**job, "student": {}}}})[1] == (
        "l2_loss + kd_loss"
    )
    assert method_words({"mimic": job, "runtime": {"runner": {"type": "base"}}}) == []


def test_the_facts_of_a_run(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "a", trainer={"max_epoch": 1, "optimizer": {"type": "SGD", "kwargs": {"lr": 0.1}}}
    )
    (run.path / "data.json").write_text(json.dumps({"test": {"samples": 1450, "classes": ["a", "b"]}}))
    facts = dict(facts_of(read_run(run.path)))
    assert facts["test data"] == "digits (split test), 1,450 images, 2 classes"
    assert facts["steps"] == "20, 1 epoch, batches of 64"
    assert facts["optimizer"] == "SGD, learning rate 0.1"
    assert "teacher0" not in facts and "method" not in facts
