"""What holds for every loss in the table: a new one is tested by existing."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcli.errors import KdError
from kdcli.losses import LOSSES

from .cases import Case, apply, forward_of, keyword_only, make_case, positional

NAMES = sorted(LOSSES)
FORWARD = {
    "student", "teacher", "labels", "indices", "student_logits", "teacher_logits", "mask", "step", "epoch",
    "teacher_weights",
}  # fmt: skip
FACTS = {
    "student_shape", "teacher_shape", "student_shapes", "teacher_shapes", "num_samples", "num_classes",
    "sample_labels",
    "teacher_classifier", "teacher_norms",
}  # fmt: skip
OPTIONAL = {"mask", "epoch", "step", "teacher_weights"}

NOT_ZERO_WHEN_EQUAL = {
    "bce_loss": "cross entropy: its minimum is the teacher's entropy",
    "ce_loss": "cross entropy",
    "nkd": "cross entropy",
    "ttm": "the teacher is transformed, the student is not",
    "wsld": "cross entropy",
    "wttm": "the teacher is transformed, the student is not",
}
ORDER_MATTERS = {
    "cc": "each sample is compared with the next",
}
ROUGH_GRADIENT = {
    "uskd": "the weight of the target is held fixed",
    "wsld": "the weight of a row is held fixed",
}
"""Losses whose gradient is their authors' choice, not the derivative of the value."""


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_a_finite_scalar_that_trains_only_the_student(name: str) -> None:
    case = make_case(name, requires_grad=True)
    loss = case.call()
    assert loss.shape == () and loss.isfinite() and loss.requires_grad
    loss.backward()
    for student in case.students:
        assert student.grad is not None and student.grad.isfinite().all() and student.grad.any()
    for teacher in case.teachers:
        assert teacher.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_loss_gets_a_finite_gradient(name: str) -> None:
    case = make_case(name, requires_grad=True)
    if not isinstance(case.made, nn.Module):
        return
    torch.manual_seed(0)
    case.made(**case.inputs).backward()
    for path, parameter in case.made.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), path


@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_computed_in_float32_and_float64_stays(name: str) -> None:
    assert make_case(name, dtype=torch.float64).call().dtype is torch.float64
    for dtype in (torch.float16, torch.bfloat16):
        case = make_case(name, dtype=dtype)
        loss = case.call()
        assert loss.dtype is torch.float32
        wide = case.call(**case.mapped(lambda x: x.float() if x.is_floating_point() else x))
        torch.testing.assert_close(loss, wide)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name: str) -> None:
    case = make_case(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = case.call()
    assert under_autocast.dtype is torch.float32
    torch.testing.assert_close(under_autocast, case.call(), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_equal_student_and_teacher_are_the_minimum(name: str) -> None:
    case = make_case(name, dtype=torch.float64, identical=True, requires_grad=True)
    if name in NOT_ZERO_WHEN_EQUAL or not case.teachers or isinstance(case.made, nn.Module):
        return
    loss = case.call()
    assert abs(loss.item()) < 1e-6
    apart = make_case(name, dtype=torch.float64).call()
    assert apart > 1e-6 and apart > loss


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    if name in ORDER_MATTERS:
        return
    case = make_case(name, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(case.call(), case.call(**case.mapped(lambda x: x[order])))


@pytest.mark.no_cover
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_derivative_of_the_value(name: str) -> None:
    case = make_case(name, batch=3, dtype=torch.float64, requires_grad=True)
    if name in ROUGH_GRADIENT or not case.students:
        return
    names = [n for n in ("student", "student_logits") if n in case.inputs]

    def loss(*students: Tensor) -> Tensor:
        left = list(students)
        given = {
            n: [left.pop(0) for _ in case.inputs[n]] if isinstance(case.inputs[n], list) else left.pop(0)
            for n in names
        }
        return case.call(**given)

    fast = isinstance(case.made, nn.Module)
    assert torch.autograd.gradcheck(loss, case.students, atol=1e-4, rtol=1e-4, fast_mode=fast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_extreme_inputs_give_a_finite_loss_and_gradient(name: str, dtype: torch.dtype) -> None:
    case = make_case(name, dtype=dtype, scale=1e4, requires_grad=True)
    loss = case.call()
    loss.backward()
    assert loss.isfinite()
    for student in case.students:
        assert student.grad is not None and student.grad.isfinite().all()


DEGENERATE: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "constant": lambda feature: torch.full_like(feature, 0.7),
    "two equal samples": lambda feature: feature[:1].expand_as(feature).clone(),
}


@pytest.mark.parametrize(
    "sides", [("student", "student_logits"), ("teacher", "teacher_logits"), None], ids=str
)
@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("name", NAMES)
def test_features_that_say_nothing_give_a_finite_loss_and_gradient(
    name: str, kind: str, sides: tuple[str, ...] | None
) -> None:
    case = make_case(name, batch=2, requires_grad=True)

    def changed(feature: Tensor) -> Tensor:
        return DEGENERATE[kind](feature.detach()).requires_grad_()

    for key in sides or ("student", "student_logits", "teacher", "teacher_logits"):
        if key in case.inputs:
            case.inputs[key] = apply(changed, case.inputs[key])
    loss = case.call()
    loss.backward()
    assert loss.isfinite()
    for student in case.students:
        assert student.grad is not None and student.grad.isfinite().all()
    if isinstance(case.made, nn.Module):
        case.made.zero_grad()
        case.made(**case.inputs).backward()
        for path, parameter in case.made.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), path


@pytest.mark.parametrize("name", NAMES)
def test_a_single_row_gives_a_finite_loss_or_a_clear_error(name: str) -> None:
    try:
        case = make_case(name, batch=1, requires_grad=True)
    except KdError as error:
        assert str(error)
        return
    loss = case.call()
    loss.backward()
    assert loss.isfinite()
    assert all(s.grad is not None and s.grad.isfinite().all() for s in case.students)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_runs_on_fake_tensors(name: str) -> None:
    case = make_case(name, requires_grad=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        loss = case.fake(mode)
        assert loss.shape == ()
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_changed_in_place(name: str) -> None:
    case = make_case(name)
    before = case.mapped(Tensor.clone)
    case.call()
    for key, value in before.items():
        if isinstance(value, Tensor | list):
            torch.testing.assert_close(case.inputs[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_keeps_to_the_vocabulary(name: str) -> None:
    target = LOSSES[name].load()
    bound = positional(forward_of(target))
    assert set(bound) <= FORWARD
    assert {n for n, p in bound.items() if p.default is not inspect.Parameter.empty} <= OPTIONAL
    if inspect.isclass(target):
        assert set(positional(target.__init__)) <= FACTS
    for option in keyword_only(target).values():
        assert option.default is not inspect.Parameter.empty
        assert option.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("name", [n for n in NAMES if "T" in keyword_only(LOSSES[n].load())])
def test_a_temperature_may_be_a_tensor(name: str) -> None:
    if inspect.isclass(LOSSES[name].load()):
        return
    number = make_case(name, dtype=torch.float64, kwargs={"T": 3.0}).call()
    T = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = make_case(name, dtype=torch.float64, kwargs={"T": T}).call()
    torch.testing.assert_close(loss, number)
    if loss.requires_grad:
        loss.backward()
        assert T.grad is not None and T.grad.isfinite()


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "teacher_weights" in positional(forward_of(LOSSES[n].load()))]
)
def test_teacher_weights_multiply_each_sample(name: str) -> None:
    case = make_case(name, dtype=torch.float64)
    even = case.call(teacher_weights=torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(even, 0.5 * case.call())
    first = case.call(teacher_weights=torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    rest = case.call(teacher_weights=torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(first + rest, case.call())


def test_a_case_is_the_same_each_time() -> None:
    one, other = make_case("uskd"), make_case("uskd")
    assert isinstance(one, Case)
    torch.testing.assert_close(one.call(), other.call(), rtol=0, atol=0)
    assert apply(lambda x: x + 1, [torch.zeros(1)])[0] == 1
