"""FRS: what it counts, what it compares, what moves the student."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from kdcli.distill.mimickers.frs import FrsMimicker
from kdcli.distill.taps import View
from kdcli.errors import SpecError
from kdcli.spec.schema import AdapterSpec, LossSpec, Temperature
from tests.distill.test_detector_mimickers import constant, context, run
from tests.training.processes import serve


def views() -> tuple[View, dict[str, View]]:
    logit = math.log(3.0)  # a score of 3/4
    student = View({"s": constant(1.0, 1, 2, 1, 2)}, {"preds": [(constant(0.0, 1, 2, 1, 2), None)]})
    scores = torch.tensor([[[[logit, -logit]], [[0.0, -logit]]]])
    teacher = View({"t": constant(3.0, 1, 2, 1, 2)}, {"preds": [(scores, None)]})
    return student, {"teacher": teacher}


def test_it_weighs_positions_by_the_teachers_best_score() -> None:
    student, teachers = views()
    found = run(FrsMimicker(context(student, teachers)), student, teachers)
    # Masks 3/4 and 1/4 add up to one position. Every difference is 2 on two channels.
    assert float(found["teacher.neck_loss"].detach()) == pytest.approx(2 * 4.0)
    # The student's score is 1/2 everywhere: every entropy is ln 2, of two score channels.
    assert float(found["teacher.pred_loss"].detach()) == pytest.approx(2 * math.log(2))
    by_elements = FrsMimicker(context(student, teachers, options={"mask_count": "elements"}))
    found = run(by_elements, student, teachers)
    assert float(found["teacher.neck_loss"].detach()) == pytest.approx(4.0)
    assert float(found["teacher.pred_loss"].detach()) == pytest.approx(math.log(2))


def wide_views(dtype: torch.dtype = torch.float32) -> tuple[View, View]:
    """Two levels as a Faster R-CNN has them: 256 channels, and the scores of three anchors."""
    random = torch.Generator().manual_seed(5)

    def side(names: str) -> View:
        sizes = [(2, 256, 6, 5), (2, 256, 3, 3)]
        maps = {
            name: torch.randn(size, generator=random, dtype=dtype)
            for name, size in zip(names, sizes, strict=True)
        }
        preds = [(torch.randn(2, 3, *size[2:], generator=random, dtype=dtype) - 2, None) for size in sizes]
        return View(maps, {"rpn_preds": preds})  # type: ignore[arg-type]

    return side("ab"), side("cd")


def by_hand(student: View, teacher: View) -> tuple[float, float]:
    """Both losses of the two levels, from their definition: sums over a mask of positions, over its sum."""
    neck = pred = 0.0
    for level, (own, theirs) in enumerate(zip("ab", "cd", strict=True)):
        s, t = (view.features[name].double() for view, name in ((student, own), (teacher, theirs)))  # type: ignore[union-attr]
        x, z = (view.outputs["rpn_preds"][level][0].double() for view in (student, teacher))
        p, q = 1 / (1 + (-x).exp()), 1 / (1 + (-z).exp())
        mask = q.max(dim=1).values
        neck += float((((s - t) ** 2).sum(1) * mask).sum() / mask.sum())
        entropy = -(q * p.log() + (1 - q) * (1 - p).log())
        pred += float((entropy.sum(1) * mask).sum() / mask.sum())
    return neck, pred


@pytest.mark.parametrize(
    ("own", "theirs"), [(25.0, 20.0), (-30.0, -22.0), (40.0, -35.0), (1.0, -2.0), (1e4, 1e4)]
)
def test_large_float32_logits_do_not_saturate_the_scores(own: float, theirs: float) -> None:
    # Exact in float64, which has 1 - sigmoid(20) = 2.06e-9; float32 rounds that score to 1.
    x, z = np.float64(own), np.float64(theirs)
    with np.errstate(over="ignore"):
        p, q, not_p, not_q = (
            1 / (1 + np.exp(-x)),
            1 / (1 + np.exp(-z)),
            1 / (1 + np.exp(x)),
            1 / (1 + np.exp(z)),
        )
    value = q * np.logaddexp(0, -x) + not_q * np.logaddexp(0, x)
    gradient = not_q * p - q * not_p
    student = View({"s": constant(1.0, 1, 1, 1, 1)}, {"preds": [(constant(own, 1, 1, 1, 1), None)]})
    teacher = View({"t": constant(3.0, 1, 1, 1, 1)}, {"preds": [(torch.full((1, 1, 1, 1), theirs), None)]})
    loss = run(FrsMimicker(context(student, {"teacher": teacher})), student, {"teacher": teacher})
    loss["teacher.pred_loss"].backward()
    grad = student.outputs["preds"][0][0].grad
    assert float(loss["teacher.pred_loss"].detach()) == pytest.approx(value, rel=1e-6, abs=0)
    assert float(grad) == pytest.approx(gradient, rel=1e-5, abs=0)


def test_it_divides_by_positions_whatever_the_number_of_channels() -> None:
    # In United-Perception one batch has 22.116369 and 1.057956 at weights 0.002 and 0.1; counting elements
    # makes 0.086392 (22.116369 / 256) and 0.352652 (1.057956 / 3) of them.
    student, teacher = wide_views()
    teachers = {"teacher": teacher}
    losses = {
        "neck_loss": LossSpec(type="l2_loss", kwargs={"loss_weight": 0.002}),
        "pred_loss": LossSpec(type="bce_loss", kwargs={"loss_weight": 0.1}),
    }
    neck, pred = by_hand(student, teacher)
    found, again, elements = (
        run(FrsMimicker(context(student, teachers, losses=losses, options=options)), student, teachers)
        for options in ({}, {"mask_count": "positions"}, {"mask_count": "elements"})
    )
    assert float(found["teacher.neck_loss"]) == pytest.approx(0.002 * neck, rel=1e-5)
    assert float(found["teacher.pred_loss"]) == pytest.approx(0.1 * pred, rel=1e-5)
    assert found == again
    assert float(found["teacher.neck_loss"] / elements["teacher.neck_loss"]) == pytest.approx(256, rel=1e-5)
    assert float(found["teacher.pred_loss"] / elements["teacher.pred_loss"]) == pytest.approx(3, rel=1e-5)


def test_what_divides_by_no_mask_stays() -> None:
    student, teacher = wide_views()
    teachers = {"teacher": teacher}
    losses = {
        "neck_loss": LossSpec(type="l2_loss", kwargs={"feat_norm": True, "batch_mean": True}),
        "pred_loss": LossSpec(type="logit_mse"),
    }
    found, elements = (
        run(
            FrsMimicker(context(student, teachers, losses=losses, options={"mask_count": count})),
            student,
            teachers,
        )
        for count in ("positions", "elements")
    )
    assert found == elements


def test_channels_are_those_that_are_compared() -> None:
    student, teacher = wide_views()
    narrow = View({name: map[:, :7].clone() for name, map in student.features.items()}, student.outputs)  # type: ignore[call-overload]
    adapter = AdapterSpec(type="conv", kwargs={"norm": "none"})
    losses = []
    for count in ("positions", "elements"):
        torch.manual_seed(0)
        made = FrsMimicker(context(narrow, {"t": teacher}, adapter=adapter, options={"mask_count": count}))
        losses.append(run(made, narrow, {"t": teacher})["t.neck_loss"].detach())
    assert float(losses[0] / losses[1]) == pytest.approx(256, rel=1e-5)


def test_predictions_have_a_gradient_towards_the_teacher() -> None:
    student, teachers = views()
    found = run(FrsMimicker(context(student, teachers)), student, teachers)
    logits = student.outputs["preds"][0][0]
    (gradient,) = torch.autograd.grad(found["teacher.pred_loss"], logits)
    # d/dx of the entropy is (sigmoid(x) - t) * mask / count, count = 3/4 + 1/4
    expected = torch.tensor([[[[-0.25 * 0.75, 0.25 * 0.25]], [[0.0, 0.25 * 0.25]]]])
    torch.testing.assert_close(gradient, expected)


def scored(
    student: list[float], teacher: list[float], dtype: torch.dtype = torch.float32
) -> tuple[View, View]:
    """Both with one map, and these logits of one score at two positions."""
    sides = [
        View(
            {name: constant(1.0, 1, 2, 1, 2)},
            {"preds": [(torch.tensor(x, dtype=dtype).view(1, 1, 1, 2), None)]},
        )
        for name, x in (("s", student), ("t", teacher))
    ]
    sides[0].outputs["preds"][0][0].requires_grad_()
    return sides[0], sides[1]


@pytest.mark.parametrize("options", [{}, {"from_logits": False}, {"from_logits": True}, {"T": 4.0}])
@pytest.mark.parametrize("size", [20.0, 30.0, 100.0])
def test_large_logits_keep_their_gradient(size: float, options: dict[str, Any]) -> None:
    student, teacher = scored([size, -size], [-1.0, 2.0])
    losses = {"pred_loss": LossSpec(type="bce_loss", kwargs=options)}
    found = run(FrsMimicker(context(student, {"t": teacher}, losses=losses)), student, {"t": teacher})[
        "t.pred_loss"
    ]
    # Of a logit x and a target q the entropy is softplus(x) - q x: here nearly size (1 - q) and size q.
    low, high = 1 / (1 + math.exp(1)), 1 / (1 + math.exp(-2))
    expected = (low * size * (1 - low) + high * size * high) / (low + high)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    # And its derivative sigmoid(x) - q: 1 - q and -q, as far as float32 goes.
    gradient = student.outputs["preds"][0][0].grad.flatten()
    share = torch.tensor([low * (1 - low), -high * high]) / (low + high)
    torch.testing.assert_close(gradient, share, rtol=1e-4, atol=1e-6)


def test_logits_compare_as_probabilities_do() -> None:
    student, teacher = scored([0.3, -2.0], [1.0, -1.5], torch.float64)
    made = FrsMimicker(context(student, {"t": teacher}))
    found = run(made, student, {"t": teacher})["t.pred_loss"]
    p, q = (view.outputs["preds"][0][0].sigmoid() for view in (student, teacher))
    expected = (torch.nn.functional.binary_cross_entropy(p, q, reduction="none") * q).sum() / q.sum()
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_temperature_is_that_of_logits_alone() -> None:
    student, teacher = scored([2.0, -3.0], [1.0, -1.0])

    def loss(**kwargs: Any) -> float:
        spec = {"pred_loss": LossSpec(type="bce_loss", kwargs=kwargs)}
        made = FrsMimicker(context(student, {"t": teacher}, losses=spec))
        return float(run(made, student, {"t": teacher})["t.pred_loss"].detach())

    assert loss() == loss(T=4.0) == loss(T=1.0, from_logits=True) != loss(T=4.0, from_logits=True)
    learned = {"pred_loss": LossSpec(type="bce_loss", temperature=Temperature())}
    with pytest.raises(SpecError, match="KD452"):
        FrsMimicker(context(student, {"t": teacher}, losses=learned))


def test_predictions_may_be_logged_alone() -> None:
    student, teachers = views()
    loud = FrsMimicker(context(student, teachers))
    silent = FrsMimicker(context(student, teachers, options={"pred_gradient": False}))
    found, before = run(silent, student, teachers), run(loud, student, teachers)
    assert all(torch.equal(found[name], loss) for name, loss in before.items()) and len(before) == 2
    assert found["teacher.neck_loss"].requires_grad and not found["teacher.pred_loss"].requires_grad
    assert not loud.logged_only and silent.logged_only == {"pred_loss": "`pred_gradient: false`"}


def test_it_adds_levels_up_and_keeps_teachers_apart() -> None:
    one, teachers = views()
    student = View(
        {"a": one.features["s"], "b": one.features["s"]}, {"rpn_preds": one.outputs["preds"] * 2, "preds": []}
    )
    theirs = teachers["teacher"]
    double = View(
        {"c": theirs.features["t"], "d": theirs.features["t"]}, {"preds": theirs.outputs["preds"] * 2}
    )
    same = View({"c": one.features["s"], "d": one.features["s"]}, {"preds": theirs.outputs["preds"] * 2})
    both = {"teacher0": double, "teacher1": same}
    found = run(FrsMimicker(context(student, both)), student, both)
    assert set(found) == {f"teacher{i}.{name}" for i in range(2) for name in ("neck_loss", "pred_loss")}
    assert float(found["teacher0.neck_loss"].detach()) == pytest.approx(16.0)
    assert float(found["teacher1.neck_loss"].detach()) == 0.0


def test_it_needs_heads_with_as_many_levels() -> None:
    student, teachers = views()
    with pytest.raises(SpecError, match="KD460"):
        FrsMimicker(context(View(student.features), teachers))
    more = View({**student.features, "u": constant(0.0, 1, 2, 1, 2)}, student.outputs)
    theirs = {
        "teacher": View(
            {**teachers["teacher"].features, "v": constant(0.0, 1, 2, 1, 2)}, teachers["teacher"].outputs
        )
    }
    with pytest.raises(SpecError, match="KD463"):
        FrsMimicker(context(more, theirs))


def shared(part: slice) -> Tensor:
    """Both losses of some images, and the gradients of all maps and scores."""
    student, teacher = wide_views(torch.float64)
    # Scores that differ from image to image: each process has another share of the mask.
    for level in teacher.outputs["rpn_preds"]:
        level[0][1] -= 2
    leaves = [*student.features.values(), *(level[0] for level in student.outputs["rpn_preds"])]
    for leaf in leaves:
        leaf.requires_grad_()  # type: ignore[union-attr]

    def of(view: View) -> View:
        maps = {name: map[part] for name, map in view.features.items()}
        return View(maps, {"rpn_preds": [(level[0][part], None) for level in view.outputs["rpn_preds"]]})  # type: ignore[arg-type]

    own, theirs = of(student), {"t": of(teacher)}
    found = run(FrsMimicker(context(own, theirs)), own, theirs)
    losses = torch.stack(list(found.values()))
    gradients = torch.autograd.grad(losses.sum(), leaves)  # type: ignore[arg-type]
    return torch.cat([losses.detach(), *(gradient.flatten() for gradient in gradients)])


def member(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    mean = shared(slice(rank, rank + 1))
    dist.all_reduce(mean)
    if rank == 0:
        torch.save(mean / 2, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_positions_are_those_of_all_processes(tmp_path: Path) -> None:
    mp.start_processes(member, (str(tmp_path),), nprocs=2, start_method=serve())
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), shared(slice(None)))
