"""SampleFeature, FRS and DeFeat against small cases worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from kdcli.distill.mimickers.defeat import DeFeatMimicker
from kdcli.distill.mimickers.fgd import FgdMimicker
from kdcli.distill.mimickers.mimicker import MimicContext, Mimicker, StepInfo
from kdcli.distill.mimickers.sample_feature import SampleFeatureMimicker
from kdcli.distill.taps import View
from kdcli.errors import SpecError
from kdcli.models.detection.box_masks import area_masks, truth_masks
from kdcli.models.detection.roi_pool import RoiAlign
from kdcli.spec.schema import AdapterSpec, Job, JobStudent, JobTeacher, LossSpec
from tests.training.processes import serve


class Net(nn.Module):
    """A network with the pooling layer where Faster R-CNN has it, or without; of `with_drp`, several."""

    def __init__(self, pool: bool = True, *, aligned: bool = True, with_drp: bool = False) -> None:
        super().__init__()
        self.bbox_head_pre_process = nn.Module()
        if pool:
            # Of what with_drp gives, the first: the others would show by their size.
            pools = [RoiAlign(1 + i, 1, aligned=aligned) for i in range(2)]
            self.bbox_head_pre_process.roipool = nn.ModuleList(pools) if with_drp else pools[0]


def context(
    student: View,
    teachers: Mapping[str, View],
    *,
    teacher_has_pool: bool = True,
    own: Net | None = None,
    theirs: Net | None = None,
    **job: Any,
) -> MimicContext:
    """What a mimicker is built from; every feature is tapped, in order. own, theirs: the networks."""
    nets = {name: theirs or Net(teacher_has_pool) for name in teachers}
    own = own or Net()
    spec = Job(
        student=JobStudent(mimic_name=tuple(student.features)),
        teachers={name: JobTeacher(mimic_name=tuple(v.features)) for name, v in teachers.items()},
        **job,
    )
    return MimicContext(
        job=spec,
        name="mimic_job0",
        path=("mimic", "jobs", "mimic_job0"),
        student=student,
        teachers=teachers,
        num_samples=8,
        num_classes=3,
        teacher_classifier=lambda name: nets[name],
        teacher_norm=lambda name, tap: nets[name],
        teacher_module=lambda name, path: nets[name].get_submodule(path),
        student_module=own.get_submodule,
    )


def run(
    mimicker: Mimicker, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    return mimicker(student, teachers, batch or {}, StepInfo(), mimicker.kdcli_record.losses)


def constant(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, requires_grad=True)


# SampleFeature


def sample_views() -> tuple[View, dict[str, View]]:
    """Two levels of stride 4 and 8; one box lies on each."""
    student = View({"a": constant(1.0, 1, 1, 8, 8), "b": constant(2.0, 1, 1, 4, 4)})
    boxes = torch.tensor([[0.0, 4.0, 4.0, 12.0, 12.0, 0.9, 1.0], [0.0, 0.0, 0.0, 24.0, 24.0, 0.8, 1.0]])
    teacher = View({"c": constant(2.0, 1, 1, 8, 8), "d": constant(5.0, 1, 1, 4, 4)}, {"rpn_dt_bboxes": boxes})
    return student, {"teacher": teacher}


OPTIONS = {"rcnn_fpn_levels": [0, 1], "rcnn_fpn_strides": [4, 8], "rcnn_fpn_base_scale": 8}


@pytest.mark.parametrize("teacher_has_pool", [True, False])
def test_sample_feature_pools_each_box_on_its_level(teacher_has_pool: bool) -> None:
    student, teachers = sample_views()
    mimicker = SampleFeatureMimicker(
        context(student, teachers, teacher_has_pool=teacher_has_pool, options=OPTIONS)
    )
    found = run(mimicker, student, teachers)
    # Differences 1 on the first level and 3 on the second: mean of 1 and 9, halved.
    assert float(found["teacher.feature_loss"].detach()) == pytest.approx(2.5)
    found["teacher.feature_loss"].backward()
    gradient = student.features["a"].grad  # type: ignore[union-attr]
    assert gradient is not None and gradient[0, 0, :1].abs().sum() == 0 != gradient.abs().sum()


def test_sample_feature_on_the_students_proposals() -> None:
    student, teachers = sample_views()
    own = View(student.features, {"rpn_dt_bboxes": torch.tensor([[0.0, 0.0, 0.0, 24.0, 24.0, 0.9, 1.0]])})
    options = {**OPTIONS, "teacher_proposal": False}
    job = Job(options=options)
    assert SampleFeatureMimicker.requirements_of(job).student_outputs == {"rpn_dt_bboxes"}
    assert SampleFeatureMimicker.requirements_of(job).teacher_outputs == frozenset()
    found = run(SampleFeatureMimicker(context(own, teachers, options=options)), own, teachers)
    assert float(found["teacher.feature_loss"].detach()) == pytest.approx(4.5)


def test_sample_feature_without_boxes_is_an_attached_zero() -> None:
    student, teachers = sample_views()
    mimicker = SampleFeatureMimicker(context(student, teachers, options=OPTIONS))
    empty = {"teacher": View(teachers["teacher"].features, {"rpn_dt_bboxes": torch.zeros(0, 7)})}
    loss = run(mimicker, student, empty)["teacher.feature_loss"]
    assert float(loss.detach()) == 0 and loss.requires_grad


def test_sample_feature_adapts_what_it_pools() -> None:
    student = View({"a": torch.randn(1, 3, 8, 8, requires_grad=True)})
    boxes = torch.tensor([[0.0, 0.0, 0.0, 16.0, 16.0, 0.9, 1.0], [0.0, 8.0, 8.0, 30.0, 30.0, 0.9, 1.0]])
    teachers = {"teacher": View({"b": torch.randn(1, 5, 8, 8)}, {"rpn_dt_bboxes": boxes})}
    options = {"rcnn_fpn_levels": [0], "rcnn_fpn_strides": [4]}
    with pytest.raises(SpecError, match="KD430"):
        SampleFeatureMimicker(context(student, teachers, options=options))
    mimicker = SampleFeatureMimicker(
        context(student, teachers, options=options, adapter=AdapterSpec(type="auto"))
    )
    run(mimicker, student, teachers)["teacher.feature_loss"].backward()
    assert all(p.grad is not None for p in mimicker.parameters()) and list(mimicker.parameters())


def test_sample_feature_needs_proposals_and_fitting_levels() -> None:
    student, teachers = sample_views()
    none = {"teacher": View(teachers["teacher"].features)}
    with pytest.raises(SpecError, match="KD461"):
        SampleFeatureMimicker(context(student, none, options=OPTIONS))
    with pytest.raises(SpecError, match="KD462"):
        SampleFeatureMimicker(context(student, teachers))
    with pytest.raises(SpecError, match="KD462"):
        SampleFeatureMimicker(context(student, teachers, options={**OPTIONS, "rcnn_fpn_strides": [4]}))


def three_levels(method: type[Mimicker], **options: Any) -> list[tuple[Any, ...]]:
    """Where and what is wrong with the options of a method on three maps."""
    features = {name: constant(1.0, 1, 1, size, size) for name, size in (("a", 8), ("b", 4), ("c", 2))}
    boxes = torch.tensor([[0.0, 4.0, 4.0, 12.0, 12.0, 0.9, 1.0]])
    teachers = {"teacher": View(features, {"rpn_dt_bboxes": boxes})}
    prefix = "rcnn_fpn" if method is SampleFeatureMimicker else "rpn_fpn"
    right = {"levels": [0, 1, 2], "strides": [4, 8, 16], "base_scale": 8, **options}
    given: dict[str, Any] = {f"{prefix}_{name}": value for name, value in right.items()}
    if method is DeFeatMimicker:
        given["neck_feature_nums"] = 3
    try:
        method(context(View(features), teachers, options=given))
    except SpecError as error:
        assert {found.code for found in error.diagnostics} == {"KD462"}
        return [(found.path or ())[4:] for found in error.diagnostics]
    return []


@pytest.mark.parametrize("method", [SampleFeatureMimicker, DeFeatMimicker])
def test_levels_that_would_train_on_nonsense_are_refused(method: type[Mimicker]) -> None:
    prefix = "rcnn_fpn" if method is SampleFeatureMimicker else "rpn_fpn"
    assert three_levels(method) == [] == three_levels(method, base_scale=0.5)
    for levels in ([0, 1, 9], [0, 0, 0], [2, 1, 0], [0, 0, 2], [-1, 0, 1]):
        assert three_levels(method, levels=levels) == [(f"{prefix}_levels",)], levels


def test_sample_feature_refuses_a_gap_that_would_drop_boxes() -> None:
    assert three_levels(SampleFeatureMimicker, levels=[0, 2], strides=[4, 16]) == [("rcnn_fpn_levels",)]
    assert three_levels(SampleFeatureMimicker, levels=[1, 2], strides=[8, 16]) == []


def test_sample_feature_counts_the_maps_of_a_layer_that_gives_several() -> None:
    student, teachers = sample_views()
    maps = View({"fpn": list(student.features.values())})  # type: ignore[arg-type]
    theirs = {
        "teacher": View({"fpn": list(teachers["teacher"].features.values())}, teachers["teacher"].outputs)
    }  # type: ignore[arg-type]
    mimicker = SampleFeatureMimicker(context(maps, theirs, options=OPTIONS))
    assert float(run(mimicker, maps, theirs)["teacher.feature_loss"].detach()) == pytest.approx(2.5)
    with pytest.raises(SpecError, match=r"levels \[0, 1, 2\] of 2 tapped maps"):
        options = {**OPTIONS, "rcnn_fpn_levels": [0, 1, 2], "rcnn_fpn_strides": [4, 8, 16]}
        SampleFeatureMimicker(context(maps, theirs, options=options))


NETS = {
    "pool": Net(aligned=False),
    "none": Net(pool=False),
    "with_drp": Net(aligned=False, with_drp=True),
}


def proposed(count: int, generator: torch.Generator) -> Tensor:
    """Boxes [count, 7] of sides from 4 to 36 pixels in one image of 64x64."""
    corners = torch.rand(count, 2, generator=generator) * 28
    ends = corners + 4 + torch.rand(count, 2, generator=generator) * 32
    return torch.cat([torch.zeros(count, 1), corners, ends, torch.ones(count, 2)], dim=1)


@pytest.mark.parametrize("teacher", NETS)
@pytest.mark.parametrize("student", NETS)
def test_sample_feature_of_identical_maps_is_nothing(student: str, teacher: str) -> None:
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 3, side, side, generator=random) for side in (16, 8)]
    own = View({"a": maps[0], "b": maps[1]})
    theirs = {"teacher": View({"c": maps[0], "d": maps[1]}, {"rpn_dt_bboxes": proposed(40, random)})}
    mimicker = SampleFeatureMimicker(
        context(own, theirs, own=NETS[student], theirs=NETS[teacher], options=OPTIONS)
    )
    batch = {"annotations": {"box_offset": 1}}
    assert float(run(mimicker, own, theirs, batch)["teacher.feature_loss"]) == 0.0


@pytest.mark.parametrize(("box_offset", "shift"), [(1, 0.0), (0, 0.5)])
def test_sample_feature_without_pooling_layers_takes_the_runs_geometry(box_offset: int, shift: float) -> None:
    # A box over columns 1 to 3 of a map that holds their numbers; in the modern geometry cells have centres.
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    boxes = torch.tensor([[0.0, 4.0, 4.0, 12.0, 12.0, 0.9, 1.0]])
    own, theirs = View({"a": ramp}), {"teacher": View({"c": ramp * 0}, {"rpn_dt_bboxes": boxes})}
    options = {"rcnn_fpn_levels": [0], "rcnn_fpn_strides": [4]}
    none = NETS["none"]
    mimicker = SampleFeatureMimicker(context(own, theirs, own=none, theirs=none, options=options))
    found = run(mimicker, own, theirs, {"annotations": {"box_offset": box_offset}})
    columns = [1 + (i + 0.5) * 2 / 7 - shift for i in range(7)]
    assert float(found["teacher.feature_loss"]) == pytest.approx(sum(x * x for x in columns) / 7 / 2)


@pytest.mark.parametrize(("box_offset", "expected"), [(0, 0.5), (1, 4.5)])
def test_sample_feature_takes_levels_by_the_runs_geometry(box_offset: int, expected: float) -> None:
    student, teachers = sample_views()
    # A side of 15 or, counted with its last pixel, 16: the first level or the second.
    boxes = torch.tensor([[0.0, 4.0, 4.0, 19.0, 19.0, 0.9, 1.0]])
    teachers = {"teacher": View(teachers["teacher"].features, {"rpn_dt_bboxes": boxes})}
    mimicker = SampleFeatureMimicker(
        context(student, teachers, own=NETS["none"], theirs=NETS["none"], options=OPTIONS)
    )
    found = run(mimicker, student, teachers, {"annotations": {"box_offset": box_offset}})
    assert float(found["teacher.feature_loss"].detach()) == pytest.approx(expected)


def test_sample_feature_refuses_a_path_without_a_pooling_layer() -> None:
    student, teachers = sample_views()
    wrong = {"student_roipooler": "bbox_head_preprocess.roipool", "teacher_roipooler": ["bbox_head"]}
    with pytest.raises(SpecError) as error:
        SampleFeatureMimicker(context(student, teachers, options={**OPTIONS, **wrong}))
    own, theirs = error.value.diagnostics
    assert (own.code, theirs.code) == ("KD464", "KD464")
    options = ("mimic", "jobs", "mimic_job0", "options")
    assert own.path == (*options, "student_roipooler") and theirs.path == (*options, "teacher_roipooler", 0)
    assert own.help == "did you mean `bbox_head_pre_process.roipool`?"
    assert theirs.help == "known names: bbox_head_pre_process.roipool"
    # A layer that is there and pools nothing; a network that has nothing to name.
    wrong = {"student_roipooler": "bbox_head_pre_process"}
    with pytest.raises(SpecError, match="KD464: `bbox_head_pre_process` of the student is a Module"):
        SampleFeatureMimicker(context(student, teachers, options={**OPTIONS, **wrong}))
    wrong = {"student_roipooler": "bbox_head_pre_process.roipool"}
    with pytest.raises(SpecError, match="KD464"):
        SampleFeatureMimicker(context(student, teachers, own=NETS["none"], options={**OPTIONS, **wrong}))


SHARED = {
    "l2": LossSpec(type="l2_loss"),
    "l2 of rows": LossSpec(type="l2_loss", kwargs={"feat_norm": True, "batch_mean": True}),
    "kl": LossSpec(type="kl_loss"),
}


def of_rois(loss: str, part: slice) -> Tensor:
    """The loss of some of 40 rois, and its gradient for each parameter of the adapter and the maps."""
    random = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, 3, side, side, generator=random, requires_grad=True) for side in (16, 8)]
    student = View({"a": maps[0], "b": maps[1]})
    features = {name: torch.randn(1, 5, s, s, generator=random) for name, s in (("c", 16), ("d", 8))}
    teachers = {"teacher": View(features, {"rpn_dt_bboxes": proposed(40, random)[part]})}
    torch.manual_seed(2)
    mimicker = SampleFeatureMimicker(
        context(
            student,
            teachers,
            options=OPTIONS,
            losses={"feature_loss": SHARED[loss]},
            adapter=AdapterSpec(type="conv", kwargs={"norm": "none"}),
        )
    )
    value = run(mimicker, student, teachers)["teacher.feature_loss"]
    # DDP waits for every one of them, rois or not.
    gradients = torch.autograd.grad(value, [*mimicker.parameters(), *maps])
    return torch.cat([value.detach().reshape(1), *(gradient.flatten() for gradient in gradients)])


def member(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for loss in SHARED:
        for first in (4, 0):
            mean = of_rois(loss, slice(first, None) if rank else slice(first))
            dist.all_reduce(mean)
            found[loss, first] = mean / 2
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_sample_feature_is_the_mean_over_the_rois_of_all_processes(tmp_path: Path) -> None:
    mp.start_processes(member, (str(tmp_path),), nprocs=2, start_method=serve())
    for (loss, first), mean in torch.load(tmp_path / "found.pt").items():
        torch.testing.assert_close(
            mean, of_rois(loss, slice(None)), msg=lambda text, at=(loss, first): f"{at}: {text}"
        )


# DeFeat


def test_masks_of_boxes_on_their_levels() -> None:
    boxes = [
        torch.tensor(
            [
                [4.0, 0.0, 12.0, 9.0, 1.0],  # side 8.5: the first level, cells x 1..2, y 0..1
                [0.0, 0.0, 24.0, 24.0, 1.0],  # side 24: the second, cells 0..2 in both
                [13.0, 13.0, 15.0, 15.5, 2.0],  # thin on stride 4: the cell of its corner
                [3.0, 3.0, 3.5, 9.0, 2.0],  # less than a pixel wide
            ]
        ),
        torch.zeros(0, 5),
    ]
    fine, coarse = truth_masks(boxes, [(8, 8), (4, 4)], [4, 8], [0, 1], 8.0, 0)
    assert fine.shape == (2, 1, 8, 8) and coarse.shape == (2, 1, 4, 4)
    expected = torch.zeros(8, 8)
    expected[0:2, 1:3] = 1
    expected[3, 3] = 1
    assert torch.equal(fine[0, 0], expected)
    assert coarse[0, 0, :3, :3].sum() == 9 == coarse[0].sum()
    assert fine[1].sum() == coarse[1].sum() == 0
    # One pixel more a side: the narrow box counts too, and marks the cell of its corner.
    expected[0, 0] = 1
    assert torch.equal(truth_masks(boxes, [(8, 8), (4, 4)], [4, 8], [0, 1], 8.0, 1)[0][0, 0], expected)


def defeat_views(adapted: bool = True) -> tuple[View, dict[str, View]]:
    features = {
        "bb": constant(1.0, 1, 2, 2, 2),
        "p2": constant(0.0, 1, 2, 4, 4),
        "p3": constant(0.0, 1, 2, 2, 2),
    }
    outputs = {"adapt_neck_features": [constant(1.0, 1, 2, 4, 4), constant(1.0, 1, 2, 2, 2)]}
    teacher = {
        "t_bb": constant(4.0, 1, 2, 2, 2),
        "t_p2": constant(3.0, 1, 2, 4, 4),
        "t_p3": constant(4.0, 1, 2, 2, 2),
    }
    return View(features, outputs if adapted else {}), {"teacher": View(teacher)}


DEFEAT = {
    "rpn_fpn_levels": [0, 1],
    "rpn_fpn_strides": [4, 8],
    "rpn_fpn_base_scale": 8,
    "neck_feature_nums": 2,
}


@pytest.mark.parametrize("adapted", [True, False])
def test_defeat_takes_foreground_and_background_apart(adapted: bool) -> None:
    student, teachers = defeat_views(adapted)
    batch = {"boxes": [torch.tensor([[0.0, 0.0, 8.0, 8.0, 1.0]])]}  # the first level only
    mimicker = DeFeatMimicker(context(student, teachers, options=DEFEAT))
    found = run(mimicker, student, teachers, batch)
    fine, coarse = (4.0, 9.0) if adapted else (9.0, 16.0)
    # Means over masked elements; levels added up, divided by 2 levels and 2.
    assert float(found["teacher.neck_fg_loss"].detach()) == pytest.approx(fine / 4)
    assert float(found["teacher.neck_bg_loss"].detach()) == pytest.approx((fine + coarse) / 4)
    assert float(found["teacher.backbone_loss"].detach()) == pytest.approx(9 / 2)


def test_defeat_without_boxes_has_no_foreground() -> None:
    student, teachers = defeat_views()
    mimicker = DeFeatMimicker(context(student, teachers, options=DEFEAT))
    found = run(mimicker, student, teachers, {"boxes": [torch.zeros(0, 5)]})
    assert float(found["teacher.neck_fg_loss"].detach()) == 0 and found["teacher.neck_fg_loss"].requires_grad


def test_defeat_without_backbone_layers_leaves_that_loss_out() -> None:
    student, teachers = defeat_views()
    student = View({k: v for k, v in student.features.items() if k != "bb"}, student.outputs)
    teachers = {"teacher": View({k: v for k, v in teachers["teacher"].features.items() if k != "t_bb"})}
    mimicker = DeFeatMimicker(context(student, teachers, options=DEFEAT))
    found = run(mimicker, student, teachers, {"boxes": [torch.zeros(0, 5)]})
    assert set(found) == {"teacher.neck_fg_loss", "teacher.neck_bg_loss"}


@pytest.mark.parametrize(
    "options", [{}, {**DEFEAT, "rpn_fpn_strides": [4]}, {**DEFEAT, "neck_feature_nums": 0}]
)
def test_defeat_wants_levels_that_fit(options: dict[str, Any]) -> None:
    student, teachers = defeat_views()
    with pytest.raises(SpecError, match="KD462"):
        DeFeatMimicker(context(student, teachers, options=options))


def test_only_losses_in_force_are_computed() -> None:
    student, teachers = defeat_views()
    mimicker = DeFeatMimicker(
        context(student, teachers, options=DEFEAT, losses={"neck_fg_loss": LossSpec(type="l2_loss")})
    )
    batch = {"boxes": [torch.zeros(0, 5)]}
    assert set(mimicker(student, teachers, batch, StepInfo(), {"backbone_loss"})) == {"teacher.backbone_loss"}


# FGD


def test_area_masks() -> None:
    boxes = [torch.tensor([[8.0, 0.0, 20.0, 16.0, 1.0], [8.0, 8.0, 16.0, 16.0, 2.0]]), torch.zeros(0, 5)]
    masks = area_masks(boxes, (4, 4), (32, 32), 0)
    # First: columns 1..3, rows 0..2, 9 cells; second: columns 1..2, rows 1..2, 4 cells.
    expected = torch.zeros(4, 4)
    expected[0:3, 1:4] = 1 / 9
    expected[1:3, 1:3] = 1 / 4
    torch.testing.assert_close(masks[0, 0], expected)
    assert masks[1].sum() == 0


def test_fgd_of_constant_maps() -> None:
    student = View({"s": constant(1.0, 1, 2, 4, 4)})
    teachers = {"teacher": View({"t": constant(3.0, 1, 2, 4, 4)})}
    batch = {"image": torch.zeros(1, 3, 32, 32), "boxes": [torch.tensor([[8.0, 8.0, 16.0, 16.0, 1.0]])]}
    # Constant maps: all attention is 1, and the contexts add nothing at first. Four cells of weight 1/4 and
    # twelve of 1/12, of two channels with squared differences 4; relation 32 * 4.
    kwargs = {"alpha": 1.0, "beta": 10.0, "gamma": 100.0, "relation": 1000.0, "loss_weight": 0.5}
    mimicker = FgdMimicker(context(student, teachers, losses={"loss": LossSpec(type="fgd", kwargs=kwargs)}))
    loss = run(mimicker, student, teachers, batch)["teacher.loss"]
    assert float(loss.detach()) == pytest.approx(0.5 * (8 + 10 * 8 + 1000 * 128))
    loss.backward()
    assert student.features["s"].grad is not None  # type: ignore[union-attr]
