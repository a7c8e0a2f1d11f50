"""Knowledge review."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdcli.errors import RunError
from kdcli.losses.review import KnowledgeReview

STUDENT = [(2, 3, 16, 16), (2, 4, 8, 8), (2, 5)]
TEACHER = [(2, 6, 32, 32), (2, 7, 8, 8), (2, 8)]


def test_the_context_loss_by_hand() -> None:
    # One level, fused with nothing: differences of 1 everywhere at each size give 1.
    loss = KnowledgeReview([(2, 3, 8, 8)], [(2, 4, 8, 8)])
    student = torch.randn(2, 3, 8, 8)
    block = loss.abfs[0]
    target = block.conv2(block.conv1(student))
    torch.testing.assert_close(loss([student], [target + 1]), torch.tensor(1.0))
    assert loss([student], [target]) == 0
    # An alternating difference is seen at full size alone: weight 1 of 1 + ½ + ¼ + ⅛.
    checks = (torch.arange(8)[:, None] + torch.arange(8)[None, :]) % 2 * 2.0 - 1
    torch.testing.assert_close(loss([student], [target + checks]), torch.tensor(1 / 1.875))


def test_levels_are_fused_from_the_deepest_up() -> None:
    torch.manual_seed(0)
    loss = KnowledgeReview(STUDENT, TEACHER)
    student, teacher = [torch.randn(s) for s in STUDENT], [torch.randn(t) for t in TEACHER]
    deep, middle, shallow = loss.abfs
    assert deep.att_conv is None and deep.conv1[0].out_channels == 5, "the width of the deepest level"
    d = deep.conv1(student[2][:, :, None, None])
    x, up = middle.conv1(student[1]), d.expand(2, 5, 8, 8)
    weights = middle.att_conv(torch.cat([x, up], 1))
    m = x * weights[:, 0, None] + up * weights[:, 1, None]
    x, up = shallow.conv1(student[0]), F.interpolate(m, scale_factor=2.0)
    weights = shallow.att_conv(torch.cat([x, up], 1))
    s = F.interpolate(x * weights[:, 0, None] + up * weights[:, 1, None], scale_factor=2.0)
    parts = [
        loss_of_one_level(shallow.conv2(s), teacher[0]),
        loss_of_one_level(middle.conv2(m), teacher[1]),
        loss_of_one_level(deep.conv2(d), teacher[2][:, :, None, None]),
    ]
    torch.testing.assert_close(loss(student, teacher), sum(parts))


def loss_of_one_level(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    sizes = [size for size in (4, 2, 1) if size < student.shape[2]]
    errors = [(student - teacher).square().mean()] + [
        (F.adaptive_avg_pool2d(student, n) - F.adaptive_avg_pool2d(teacher, n)).square().mean() for n in sizes
    ]
    weights = [0.5**i for i in range(len(errors))]
    return sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.05), (4, 0.25), (19, 1.0), (100, 1.0)])
def test_it_grows_over_twenty_epochs(epoch: int, share: float) -> None:
    loss = KnowledgeReview(STUDENT, TEACHER)
    student, teacher = [torch.randn(s) for s in STUDENT], [torch.randn(t) for t in TEACHER]
    torch.testing.assert_close(loss(student, teacher, epoch), share * loss(student, teacher))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(2, 9, 3)], [(2, 4, 3, 3)]),
        ([(2, 9, 3)], [(2, 10, 3)]),
        ([(2, 3)], [(2, 4, 3, 3)]),
        ([(2, 9, 3), (2, 4, 3, 3)], [(2, 9, 3), (2, 4, 3, 3)]),
    ],
)
def test_levels_of_other_places_are_refused(
    student: list[tuple[int, ...]], teacher: list[tuple[int, ...]]
) -> None:
    with pytest.raises(RunError, match="cannot match the positions"):
        KnowledgeReview(student, teacher)


def test_equally_many_tokens_and_a_vector_are_levels() -> None:
    shapes = [(2, 9, 3), (2, 9, 4), (2, 5)]
    loss = KnowledgeReview(shapes, shapes)
    assert loss([torch.randn(s) for s in shapes], [torch.randn(s) for s in shapes]).isfinite()


@pytest.mark.parametrize(("warmup_epochs", "share"), [(4, 0.5), (2, 1.0), (0, 1.0)])
def test_it_grows_over_as_many_epochs_as_the_spec_says(warmup_epochs: int, share: float) -> None:
    loss = KnowledgeReview(STUDENT, TEACHER, warmup_epochs=warmup_epochs)
    student, teacher = [torch.randn(s) for s in STUDENT], [torch.randn(t) for t in TEACHER]
    torch.testing.assert_close(loss(student, teacher, 1), share * loss(student, teacher))


def test_the_middle_width_has_a_limit() -> None:
    loss = KnowledgeReview(STUDENT, TEACHER, max_mid_channel=2)
    assert [fusion.conv1[0].out_channels for fusion in loss.abfs] == [2, 2, 2]  # type: ignore[index, union-attr]
    assert [fusion.conv2[0].in_channels for fusion in loss.abfs] == [2, 2, 2]  # type: ignore[index, union-attr]
