"""A teacher whose list ends after the layers that are mimicked takes the checkpoint of the whole network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from kdcli.analysis.comparison import compare
from kdcli.commands.validate import examine
from kdcli.errors import SpecError
from kdcli.models.network import build_network
from kdcli.models.weights import save_safetensors
from kdcli.parallel.distributed import Processes
from kdcli.records import Notice, Step
from kdcli.spec.parse import read
from kdcli.spec.schema import ModuleSpec
from kdcli.training.guard import prove_teachers
from kdcli.training.join_jobs import unread_of
from kdcli.training.make_caches import make_caches
from kdcli.training.run import RunOptions
from tests.scenes import SAMPLES, on_scenes, write_scenes
from tests.training.runs import SPEC, run_of, spec_of, train_all

BACKBONE = {
    "name": "backbone",
    "type": "resnet_custom",
    "kwargs": {
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "width": 4,
        "input_channel": 1,
        "normalize": {"type": "solo_bn"},
    },
}
HEAD = {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 4}}
TOLD = "teacher0: 2 tensors of `head` are not used: the teacher's list has no such module"
CHANGES = (
    "trainer.lr_scheduler=null",
    f"teacher0=[{BACKBONE}]",
    "mimic.cfgs.loss={type: l2_loss}",
    "mimic.adapter=auto",
    "mimic.student.mimic_name=[model.layer2]",
    "mimic.teacher0={mimic_name: [backbone.layer1], teacher_weight: whole.safetensors,"
    " allow_weak_teacher: true}",
    "mimic.warm_up_iters=-1",
    "trainer.max_iter=1",
)


@pytest.fixture(autouse=True)
def weights(folder: Path) -> None:
    """The checkpoint of a backbone with its head."""
    net = build_network([ModuleSpec(**BACKBONE), ModuleSpec(**HEAD)], path=("net",))
    save_safetensors(net.state_dict(), Path("whole.safetensors"))


def test_it_trains_and_says_once_what_is_left_out() -> None:
    records = train_all(spec_of(SPEC, *CHANGES))
    assert [r.message for r in records if isinstance(r, Notice)].count(TOLD) == 1
    (step,) = [r for r in records if isinstance(r, Step)]
    assert step.losses["mimic_job0.teacher0.loss"] > 0


def test_a_detector_that_ends_after_its_proposals_is_not_measured(folder: Path) -> None:
    scenes = write_scenes(folder / "scenes")
    raw = yaml.safe_load((SAMPLES / "scenes_sample_feature.yaml").read_text())
    whole = [ModuleSpec(**module) for module in raw["teacher"]]
    net = build_network(whole, path=("net",), aligned=True)
    save_safetensors(net.state_dict(), Path("detector.safetensors"))
    raw["teacher"] = raw["teacher"][: [module.name for module in whole].index("post_process") + 1]
    Path("cut.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    # The student's maps are as wide as the teacher's, as the sample has them adapted.
    changes = [one for one in on_scenes(scenes) if not one.startswith("net.")]
    weight = "mimic.teacher.teacher_weight=detector.safetensors"
    with run_of(read("cut.yaml", [*changes, weight])) as run:
        assert prove_teachers(run) == ({}, [])
        told = [notice for notice in run.notices if "bbox_head" in notice]
    assert told == ["teacher: 8 tensors of `bbox_head` are not used: the teacher's list has no such module"]


def test_validate_tells_it() -> None:
    Path("cfg.yaml").write_text(SPEC)
    found, plan = examine("cfg.yaml", list(CHANGES), files="full")[:2]
    assert [(one.code, one.severity, one.message) for one in found] == [("KD618", "warning", TOLD)]
    assert plan is not None


def test_it_is_measured_beside_the_student_and_cached() -> None:
    here = Processes(device=torch.device("cpu"))
    train_all(spec_of(SPEC, *CHANGES))
    rows, notices = compare(spec_of(SPEC, *CHANGES), RunOptions(), here, None)
    assert [row.network for row in rows] == ["student", "teacher0"]
    assert not any("left out" in notice.message for notice in notices)
    assert [notice.message for notice in notices].count(TOLD) == 1
    cached = (*CHANGES, "mimic.teacher0.cache={views: 1, dir: caches}")
    told = [notice.message for notice in make_caches(spec_of(SPEC, *cached), RunOptions(), here)]
    assert "40 of 40 rows" in told[-1] and told.count(TOLD) == 1


NINE = {**HEAD, "kwargs": {"num_classes": 9}}
OF_OTHER_WIDTH = (*CHANGES, f"teacher0=[{BACKBONE}, {NINE}]")
LEFT_OUT = "teacher0: `head` has 4 outputs in the file and 9 in the spec: it is left out, as no loss reads it"


def losses_of(*changes: str) -> dict[str, float]:
    """The losses of the first step."""
    (step,) = [
        record for record in train_all(spec_of(SPEC, *changes), overwrite=True) if isinstance(record, Step)
    ]
    return dict(step.losses)


@pytest.mark.slow
def test_a_head_of_another_width_that_nobody_reads_is_left_out() -> None:
    records = train_all(spec_of(SPEC, *OF_OTHER_WIDTH))
    assert [r.message for r in records if isinstance(r, Notice)].count(LEFT_OUT) == 1
    # As the teacher whose list ends before its head.
    assert losses_of(*OF_OTHER_WIDTH) == losses_of(*CHANGES)
    Path("cfg.yaml").write_text(SPEC)
    found, plan = examine("cfg.yaml", list(OF_OTHER_WIDTH), files="full")[:2]
    assert [(one.code, one.severity, one.message) for one in found] == [("KD618", "warning", LEFT_OUT)]
    assert plan is not None


@pytest.mark.slow
def test_it_has_no_answers_to_measure() -> None:
    train_all(spec_of(SPEC, *OF_OTHER_WIDTH))
    here = Processes(device=torch.device("cpu"))
    rows, notices = compare(spec_of(SPEC, *OF_OTHER_WIDTH), RunOptions(), here, None)
    assert [(row.network, bool(row.metrics)) for row in rows] == [("student", True), ("teacher0", False)]
    assert LEFT_OUT in [notice.message for notice in notices]


@pytest.mark.parametrize(
    "change",
    [
        "mimic.teacher0.mimic_name=[head.classifier]",
        "mimic.teacher0.mimic_name=[logits]",
        "mimic.teacher_weighting=confidence",
        "mimic.cfgs.loss={type: srrl}",
    ],
)
def test_a_head_that_is_read_has_to_fit(change: str) -> None:
    changes = (*OF_OTHER_WIDTH, change)
    with pytest.raises(SpecError) as caught, run_of(spec_of(SPEC, *changes)):
        pass
    (found,) = caught.value.diagnostics
    assert found.code == "KD531" and "head.classifier.weight [4, 32] instead of [9, 32]" in found.message
    assert found.help == "the file has 4 classes: a network of as many would fit"


@pytest.mark.parametrize("tap", ["model.layer2", "logits", "model"])
def test_the_logits_of_a_whole_teacher_of_another_width(tap: str) -> None:
    sizes = "in_channels: 1, widths: [4, 4, 4, 8]"
    whole = "{name: model, type: cifar_resnet8, kwargs: {num_classes: %d, " + sizes + "}}"
    module = ModuleSpec(**yaml.safe_load(whole % 4))
    save_safetensors(build_network([module], path=("net",)).state_dict(), Path("whole.safetensors"))
    changes = (*CHANGES, f"teacher0={whole % 9}", f"mimic.teacher0.mimic_name=[{tap}]")
    if tap != "model.layer2":
        with pytest.raises(SpecError, match="KD531"), run_of(spec_of(SPEC, *changes)):
            pass
        return
    with run_of(spec_of(SPEC, *changes)) as run:
        assert any("has 4 outputs in the file and 9 in the spec" in notice for notice in run.notices)
        assert prove_teachers(run) == ({}, [])
        assert "logits" not in run.teachers["teacher0"].net({"image": torch.zeros(1, 1, 8, 8)})


def test_a_detector_needs_what_its_method_reads(folder: Path) -> None:
    spec = spec_of((SAMPLES / "scenes_sample_feature.yaml").read_text()).spec
    net = build_network(spec.teachers["teacher"], path=("teachers", "teacher"), aligned=True)
    later = ["bbox_head_pre_process", "bbox_head", "bbox_head_post_process"]
    assert unread_of(spec, "teacher", net) == frozenset(later)
    spec = spec_of((SAMPLES / "scenes_frs.yaml").read_text()).spec
    assert unread_of(spec, "teacher", net) == frozenset()
