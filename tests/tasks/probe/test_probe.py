"""A run with a probe: what is measured when, what chooses the best student, and what changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdcli.errors import SpecError
from kdcli.models.network import Network
from kdcli.models.weights import read_weights
from kdcli.records import Evaluation, Finished, Notice, Record
from kdcli.spec.parse import ParsedSpec
from kdcli.tasks.probe.probe import Probe, ProbedNetwork
from kdcli.training.checkpoint import checkpoints
from kdcli.training.sides import Sides
from tests.training.conftest import Kdcli
from tests.training.equality import in_a_group
from tests.training.runs import SPEC, run_of, saved_student, spec_of, train_all

FAKE = (
    "{dataset: {type: fake, kwargs: {num_samples: %d, num_classes: 4, shape: [1, 8, 8], noise: 0.5, seed: %d,"
    " transformer: [{type: to_tensor}]}}}"
)
PROBED = SPEC.replace(
    "  batch_sampler: {type: base",
    f"  probe: {{train: {FAKE % (24, 5)}, test: {FAKE % (20, 6)}}}\n  batch_sampler: {{type: base",
)
FEATURES = PROBED.replace(
    "  cfgs:\n    loss: {type: kd_loss, kwargs: {T: 2}}", "  task_loss: false\n  adapter: auto"
).replace("[logits]", "[layer3]")
"""Features alone, so that the student's classifier learns nothing."""

BEFORE = "student before training"


def evaluations(records: list[Record]) -> dict[str, list[Evaluation]]:
    found: dict[str, list[Evaluation]] = {}
    for record in records:
        if isinstance(record, Evaluation):
            found.setdefault(record.network, []).append(record)
    return found


def test_what_a_labelled_run_shows() -> None:
    records = train_all(spec_of(PROBED))
    found = evaluations(records)
    assert [one.step for one in found[BEFORE]] == [0] and [one.step for one in found["teacher0"]] == [0]
    assert set(found[BEFORE][0].metrics) == {"probe_top1", "knn_top1"}
    assert all({"top1", "probe_top1", "knn_top1"} <= one.metrics.keys() for one in found["student"])
    assert {one.primary for one in found["student"]} == {"top1"}
    finished = records[-1]
    assert isinstance(finished, Finished)
    assert list(finished.teachers) == [BEFORE, "teacher0"]
    assert {"top1", "probe_top1"} <= finished.teachers["teacher0"].keys()
    said = " ".join(record.message for record in records if isinstance(record, Notice))
    assert "24 images of 4 classes to learn from, 20 to measure on" in said
    assert "the probe of the student reads `model.fc:in` (4 numbers)" in said and "s to fit" in said


def test_a_student_without_a_trained_head_is_chosen_by_the_probe() -> None:
    records = train_all(spec_of(FEATURES, "trainer.max_epoch=3"))
    students = evaluations(records)["student"]
    finished = records[-1]
    assert isinstance(finished, Finished) and finished.primary == "probe_top1"
    best = max(one.metrics["probe_top1"] for one in students)
    assert finished.best["probe_top1"] == best
    assert students[0].best and "top1" not in students[0].metrics


@pytest.mark.slow
def test_training_data_without_labels() -> None:
    records = train_all(
        spec_of(FEATURES, *(f"dataset.{side}.dataset.kwargs.labels=none" for side in ("train", "test")))
    )
    finished = records[-1]
    assert isinstance(finished, Finished) and finished.primary == "probe_top1"
    assert {"explained_variance", "probe_top1", "knn_top1"} <= finished.best.keys()


@pytest.mark.slow
def test_how_often() -> None:
    records = train_all(spec_of(FEATURES, "trainer.max_epoch=5", "dataset.probe.freq=2"))
    students = evaluations(records)["student"]
    assert ["probe_top1" in one.metrics for one in students] == [False, True, False, True, True]
    assert not students[0].best and not students[2].best and students[1].best
    rare = train_all(
        spec_of(
            FEATURES,
            "trainer.max_epoch=7",
            "trainer.test_freq=3",
            "dataset.probe.freq=4",
            "saver.save_dir=rare",
        )
    )
    assert [(one.epoch, "probe_top1" in one.metrics) for one in evaluations(rare)["student"]] == [
        (3, False),
        (6, True),
        (7, True),
    ]


@pytest.mark.slow
def test_training_is_the_same_with_and_without_it() -> None:
    train_all(spec_of(PROBED, "saver.save_dir=with"))
    train_all(spec_of(SPEC, "saver.save_dir=without"))
    one, other = (read_weights(Path(run, "student.safetensors")) for run in ("with", "without"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_resumed_run_measures_once_what_is_measured_once() -> None:
    whole = train_all(spec_of(FEATURES, "trainer.max_epoch=3", "saver.save_dir=whole"))
    train_all(
        spec_of(
            FEATURES, "trainer.max_epoch=1", "saver.save_dir=parts", "trainer.lr_scheduler.kwargs.T_max=2"
        )
    )
    rest = train_all(spec_of(FEATURES, "trainer.max_epoch=3", "saver.save_dir=parts"), resume=True)
    assert BEFORE not in evaluations(rest) and "teacher0" not in evaluations(rest)
    ends = [records[-1] for records in (whole, rest)]
    assert all(isinstance(end, Finished) for end in ends)
    assert ends[0].best == ends[1].best and ends[0].teachers == ends[1].teachers  # type: ignore[union-attr]
    states = [
        torch.load(checkpoints(Path(run, "checkpoints"))[0], weights_only=True) for run in ("whole", "parts")
    ]
    assert states[0]["progress"] == states[1]["progress"]


@pytest.mark.slow
def test_other_images_in_the_probe_begin_anew() -> None:
    train_all(spec_of(FEATURES, "trainer.max_epoch=1"))
    changed = spec_of(FEATURES, "trainer.max_epoch=2", "dataset.probe.test.dataset.kwargs.seed=9")
    key = "dataset.probe.test.dataset.kwargs.seed"
    records = train_all(changed, resume=True, allow_changed=(key, "trainer.max_epoch"))
    said = [record.message for record in records if isinstance(record, Notice)]
    assert any("the probe's images have changed" in message for message in said)
    assert "teacher0" in evaluations(records) and evaluations(records)["student"][0].best


def test_features_of_a_teacher_are_read_once() -> None:
    with run_of(spec_of(FEATURES)) as run:
        assert run.probe is not None
        ran = 0

        def count(*_: Any) -> None:
            nonlocal ran
            ran += 1

        net = run.teachers["teacher0"].net.eval()
        network = ProbedNetwork(name="teacher0", net=net, weights="these")
        first = run.probe.measure(network)
        files = sorted(path.name for path in run.folder.root.glob("probe_*"))
        assert files == ["probe_teacher0_test.safetensors", "probe_teacher0_train.safetensors"]
        net.register_forward_hook(count)
        second = run.probe.measure(network)
        assert first is not None and second is not None and first.metrics == second.metrics
        looks, ran = ran, 0
        run.probe.measure(ProbedNetwork(name="teacher0", net=net, weights="others"))
        assert ran == looks + 3 + 3  # batches of 8 of 24 and 20 images
        net.register_forward_hook(count)


class Odd(nn.Module):
    """Its features are constant, or not finite for dark images."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.fc = fault, nn.Linear(2, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean = image.mean((1, 2, 3))
        features = torch.stack([mean, image.std((1, 2, 3))], 1)
        if self.fault == "constant":
            features = torch.ones_like(features)
        if self.fault == "nan":
            features = torch.where((mean < 0.5)[:, None], torch.nan, features)
        if self.fault == "all nan":
            features = features * torch.nan
        return self.fc(features)  # type: ignore[no-any-return]


def odd(fault: str) -> Network:
    return Network({"model": Odd(fault)}).eval()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("constant", "the same features for all images"),
        ("nan", "not finite for"),
        ("all nan", "not finite for 44"),
    ],
)
def test_features_that_are_of_no_use_are_told(fault: str, message: str) -> None:
    found = probe_of(spec_of(PROBED)).measure(ProbedNetwork(name="student", net=odd(fault)))
    assert found is not None and len(found.messages) == 1 and message in found.messages[0]
    if fault == "constant":
        assert found.metrics == {"probe_top1": 25.0, "knn_top1": 25.0}
    if fault == "all nan":
        assert found.metrics == {"probe_top1": 0.0, "knn_top1": 0.0}


def probe_of(parsed: ParsedSpec) -> Probe:
    probe, _ = Sides(parsed.spec, parsed.places).build_probe(torch.device("cpu"), None)
    assert probe is not None
    return probe


# class folders and lists


def draw(folder: Path, names: dict[str, int], seed: int) -> None:
    """Grey images of one class a folder, the classes by their shade, with noise."""
    draws = np.random.default_rng(seed)
    for number, (name, count) in enumerate(sorted(names.items())):
        (folder / name).mkdir(parents=True)
        for image in range(count):
            level = 40 + 60 * number + draws.normal(0, 25)
            pixels = np.clip(draws.normal(level, 10, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{image}.png")


def on_folders(train: str, test: str, *more: str) -> ParsedSpec:
    return spec_of(
        PROBED,
        *(
            f"dataset.probe.{side}.dataset={{type: image_folder, kwargs: {{root: {root}, color_mode: GRAY,"
            " transformer: [{type: to_tensor}]}}"
            for side, root in (("train", train), ("test", test))
        ),
        *more,
    )


def test_classes_are_matched_by_name(folder: Path) -> None:
    draw(folder / "train", {"ant": 5, "bee": 5, "cat": 5}, 1)
    draw(folder / "whole", {"ant": 4, "bee": 4, "cat": 4}, 2)
    shutil.copytree(folder / "whole", folder / "part")
    shutil.rmtree(folder / "part/ant")
    alone = probe_of(on_folders("train", "part"))
    found = alone.measure(ProbedNetwork(name="student", net=odd("none")))
    # By number, bees would count as ants.
    assert found is not None and found.metrics["probe_top1"] > 60
    assert any("no images of the class `ant`" in notice for notice in alone.notices)
    shutil.copytree(folder / "whole/ant", folder / "part/wasp")
    with pytest.raises(SpecError) as error:
        probe_of(on_folders("train", "part"))
    assert (
        error.value.diagnostics[0].code == "KD541"
        and "probe's test data" in error.value.diagnostics[0].message
    )


def test_the_order_of_the_images_changes_nothing(folder: Path) -> None:
    draw(folder / "train", {"ant": 6, "bee": 7, "cat": 9}, 1)
    draw(folder / "test", {"ant": 8, "bee": 8, "cat": 8}, 2)
    found = []
    for order in (1, -1, 3):
        for side in ("train", "test"):
            names = sorted(str(path.relative_to(folder)) for path in (folder / side).rglob("*.png"))
            names = names[::order] if order != 3 else [*names[::2], *names[1::2]]
            lines = [f"{name} {'abc'.index(Path(name).parent.name[0])}\n" for name in names]
            (folder / f"{side}.txt").write_text("".join(lines))
        parsed = spec_of(
            PROBED,
            *(
                f"dataset.probe.{side}.dataset={{type: cls, kwargs: {{meta_file: {side}.txt, image_reader: {{type:"
                " fs_pillow, kwargs: {image_dir: ., color_mode: GRAY}}, transformer: [{type: to_tensor}]}}"
                for side in ("train", "test")
            ),
        )
        probe = probe_of(parsed)
        measured = probe.measure(ProbedNetwork(name="student", net=odd("none")))
        assert measured is not None
        # The digests are of the images in the order in which the features are fitted.
        found.append((measured.metrics, probe.train.digest, probe.test.digest))
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_several_processes_find_what_one_finds(folder: Path) -> None:
    (folder / "group").mkdir()
    before, teacher, _, last = in_a_group({"probed": (FEATURES, [])}, folder / "group")["probed"]["metrics"]
    records = evaluations(train_all(spec_of(FEATURES, "trainer.max_epoch=1", "saver.save_dir=one")))
    assert before == records[BEFORE][0].metrics and teacher == records["teacher0"][0].metrics
    with run_of(spec_of(FEATURES, "saver.save_dir=two")) as run:
        run.student.load_state_dict(
            saved_student(folder / "group/many0/student.safetensors", run.student), strict=False
        )
        assert run.probe is not None
        found = run.probe.measure(ProbedNetwork(name="student", net=run.student.eval()))
    assert found is not None and found.metrics == {name: last[name] for name in found.metrics}


@pytest.mark.slow
def test_eval_shows_it_and_validate_checks_it(folder: Path, kdcli: Kdcli) -> None:
    Path("probed.yaml").write_text(FEATURES)
    assert kdcli("train", "probed.yaml", "--quiet")[0] == 0
    code, output, said = kdcli("eval", "probed.yaml", "--format", "json")
    assert code == 0
    rows = {row["network"]: row["metrics"] for row in json.loads(output)["networks"]}
    finished = json.loads(Path("runs/probed/finished.json").read_text())
    assert rows["student"]["probe_top1"] == finished["best"]["probe_top1"]
    assert "the probe of the student reads `model.fc:in` (4 numbers)" in said
    code, output, _ = kdcli("validate", "probed.yaml", "dataset.probe.feature=layer7")
    assert code == 1 and "KD422" in output
