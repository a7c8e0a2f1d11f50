"""The queue of the teacher's features as prototypes, global and local."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.errors import RunError
from kdcli.losses import prototypes
from kdcli.losses.parts.draws import drawn_integers
from kdcli.losses.prototypes import Prototypes

SHAPE = (3, 4, 2, 3)
INDICES = torch.tensor([7, 2, 5])


def made(shape: tuple[int, ...] = SHAPE, **kwargs: Any) -> Prototypes:
    torch.manual_seed(0)
    return Prototypes(shape, **kwargs).double()


def features(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    return student, teacher


def divergence(student: Tensor, teacher: Tensor, rows: Tensor, T: float) -> Tensor:
    """KL of each row, by torch."""
    s, t = (
        (F.normalize(x, dim=1) @ F.normalize(rows, dim=1).T / T).log_softmax(1) for x in (student, teacher)
    )
    return F.kl_div(s, t, reduction="none", log_target=True).sum(1)


def test_two_images_by_hand() -> None:
    """The teacher's images lie at right angles, the student's first halfway between: at T 1 two distributions."""
    loss = made((2, 2), queue_size=4, T=1.0)
    teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    student = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    p = math.e / (math.e + 1)
    first = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(loss(student, teacher, torch.tensor([0, 1]))) == pytest.approx(first / 2, rel=1e-9)
    # Two of four places are filled, the others count for nothing.
    assert int(loss.images.pushed) == 2 and not loss.images.rows[2:].any()
    # At T 1/2 the teacher's scores are twice as far apart.
    sharper = made((2, 2), queue_size=4, T=0.5)
    q = math.e**2 / (math.e**2 + 1)
    expected = q * math.log(2 * q) + (1 - q) * math.log(2 * (1 - q))
    assert float(sharper(student, teacher, torch.tensor([0, 1]))) == pytest.approx(expected / 2, rel=1e-9)


@pytest.mark.parametrize(("of_global", "of_local"), [(1.0, 1.0), (0.5, 3.0)])
def test_it_is_the_divergence_over_images_and_drawn_positions(of_global: float, of_local: float) -> None:
    loss = made(queue_size=64, T=0.3, positions=2, global_weight=of_global, local_weight=of_local)
    before = features(1)[1]
    loss(features(1)[0], before, INDICES, None, 4)
    student, teacher = features()
    value = loss(student, teacher, INDICES, None, 5)
    images = torch.cat((before, teacher)).mean((2, 3))
    over_images = divergence(student.mean((2, 3)), teacher.mean((2, 3)), images, 0.3).mean()
    held = []
    for feature, step in ((before, 4), (teacher, 5)):
        drawn = drawn_integers(loss.salt, step, INDICES, 2, below=6)
        held += [feature[image].flatten(1)[:, place] for image in range(3) for place in drawn[image]]
    s, t = (x.flatten(2).transpose(1, 2).flatten(0, 1) for x in (student, teacher))
    over_positions = divergence(s, t, torch.stack(held), 0.3).mean()
    torch.testing.assert_close(value, of_global * over_images + of_local * over_positions)


def test_tokens_are_positions_and_a_vector_has_the_global_part_alone() -> None:
    student, teacher = features()
    of_map = made()(student, teacher, INDICES)
    as_tokens = [x.flatten(2).transpose(1, 2) for x in (student, teacher)]
    torch.testing.assert_close(made((3, 6, 4))(*as_tokens, INDICES), of_map)
    vectors = [x.mean((2, 3)) for x in (student, teacher)]
    assert made((3, 4)).places is None
    torch.testing.assert_close(
        made((3, 4))(*vectors, INDICES), made(local_weight=0.0)(student, teacher, INDICES)
    )


def _lists(rows: list[Tensor]) -> list[list[float]]:
    return [row.tolist() for row in rows]


def test_the_oldest_rows_leave_the_queue_first() -> None:
    loss = made((3, 4), queue_size=5)
    pushed = []
    for seed in range(3):
        student, teacher = features(seed, (3, 4))
        loss(student, teacher, INDICES)
        pushed += [F.normalize(teacher, dim=1)[row] for row in (1, 2, 0)]  # in the order of 2, 5, 7
    found, expected = (
        torch.tensor(sorted(rows)) for rows in (loss.images.rows.tolist(), _lists(pushed[-5:]))
    )
    torch.testing.assert_close(found, expected)
    small = made((3, 4), queue_size=2)
    small(*features(0, (3, 4)), INDICES)
    torch.testing.assert_close(small.images.rows, torch.stack(pushed[1:3]))


def test_only_training_fills_the_queue_and_the_teacher_gets_no_gradient() -> None:
    loss = made()
    student, teacher = (x.requires_grad_() for x in features())
    assert float(loss.eval()(student, teacher, INDICES).detach()) == 0 and int(loss.images.pushed) == 0
    loss.train()(student, teacher, INDICES).backward()
    assert student.grad is not None and student.grad.any() and teacher.grad is None
    assert not loss.images.rows.requires_grad and int(loss.images.pushed) == 3
    rows = loss.images.rows.clone()
    loss.eval()(student, teacher, INDICES)
    assert torch.equal(loss.images.rows, rows)


def test_a_student_that_shows_the_teachers_features_is_right() -> None:
    loss = made()
    teacher = features()[1]
    for seed in range(3):
        loss(*features(seed), INDICES)
    student = (3 * teacher).requires_grad_()  # their directions count
    value = loss(student, teacher, INDICES)
    value.backward()
    assert abs(float(value.detach())) < 1e-12 and student.grad is not None
    assert student.grad.abs().max() < 1e-9


def test_each_sample_counts_as_its_teacher_does() -> None:
    student, teacher = features()
    whole = made()(student, teacher, INDICES)
    doubled = made()(student, teacher, INDICES, torch.full((3,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(doubled, 2 * whole)
    first = made()(student, teacher, INDICES, torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64))
    assert float(first) != pytest.approx(float(whole))


def test_a_gradient_may_be_asked_for_after_the_next_batch() -> None:
    loss = made(queue_size=3)
    student, teacher = features()
    student.requires_grad_()
    value = loss(student, teacher, INDICES)
    (now,) = torch.autograd.grad(value, student, retain_graph=True)
    loss(*features(1), INDICES)
    assert torch.equal(torch.autograd.grad(value, student)[0], now)


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    loss = made(queue_size=7)
    for step in range(4):
        loss(*features(step), INDICES, None, step)
    resumed = Prototypes(SHAPE, queue_size=7).double()
    resumed.load_state_dict(loss.state_dict())
    one, other = ([which(*features(s), INDICES, None, s).item() for s in (4, 5)] for which in (loss, resumed))
    assert one == other
    assert {
        "images.rows",
        "images.pushed",
        "places.rows",
        "places.pushed",
        "salt",
    } == loss.state_dict().keys()


def test_every_process_takes_in_the_rows_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes' queues are that of one with the whole batch, however the batch is split."""
    parts = [(INDICES, *features(1)), (torch.tensor([0, 8, 1]), *features(2))]
    indices, student, teacher = (torch.cat(both) for both in zip(*parts, strict=True))
    whole, queues = made(queue_size=9, positions=2), []
    value = whole(student, teacher, indices)

    notes: list[list[Tensor]] = [[], []]
    for part, note in zip(parts, notes, strict=True):

        def noted(rows: Tensor, note: list[Tensor] = note) -> Tensor:
            note.append(rows)
            return torch.cat((rows, rows))

        monkeypatch.setattr(prototypes, "gather_rows", noted)
        made(queue_size=9, positions=2)(part[1], part[2], part[0])
    losses = []
    for part in parts:
        gathered = [torch.cat(both) for both in zip(*notes, strict=True)]
        monkeypatch.setattr(prototypes, "gather_rows", lambda _, queue=gathered: queue.pop(0))
        own = made(queue_size=9, positions=2)
        losses.append(own(part[1], part[2], part[0]))
        assert not gathered
        queues.append(own.state_dict())
    torch.testing.assert_close(torch.stack(losses).mean(), value)
    for queue in queues:
        for name, buffer in whole.state_dict().items():
            torch.testing.assert_close(queue[name], buffer, msg=name)


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(RunError, match="`prototypes` compares equal shapes"):
        made()(torch.zeros(3, 5, 2, 3), torch.zeros(SHAPE), INDICES)
