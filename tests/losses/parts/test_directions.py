"""Rows without direction: an ordinary gradient there, and the former arithmetic everywhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcli.losses.at import attention_transfer
from kdcli.losses.cat_kd import ClassAttention
from kdcli.losses.crd import ContrastiveRepresentation
from kdcli.losses.dist import dist
from kdcli.losses.ft import FactorTransfer
from kdcli.losses.itrd import InformationTheoretic
from kdcli.losses.kd import kd_loss
from kdcli.losses.l2 import l2_loss
from kdcli.losses.nst import neuron_selectivity
from kdcli.losses.parts import directions
from kdcli.losses.parts.directions import FAINT, lengths, normalized
from kdcli.losses.parts.logits import standardize
from kdcli.losses.pkd import pearson
from kdcli.losses.pkt import probabilistic_transfer
from kdcli.losses.rkd import relational
from kdcli.losses.sp import similarity_preserving

Loss = Callable[[Tensor, Tensor], Tensor]

B = 8
LOGITS, VECTOR, MAP = (B, 10), (B, 6), (B, 5, 4, 4)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def module(make: Callable[[], nn.Module]) -> Loss:
    torch.manual_seed(0)
    made = make().eval()
    return lambda s, t: made.to(s.dtype if s.dtype is torch.float64 else torch.float32)(s, t)


def standardised_kd(student: Tensor, teacher: Tensor) -> Tensor:
    return kd_loss(standardize(student), standardize(teacher), T=2.0)


ITRD = module(lambda: InformationTheoretic(VECTOR, VECTOR))
CAT_KD = module(lambda: ClassAttention(MAP, MAP, nn.Linear(7, 5)))
FT = module(lambda: FactorTransfer(MAP, MAP))
LOSSES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "at": (attention_transfer, MAP),
    "at, p 1": (partial(attention_transfer, p=1), MAP),
    "cat_kd": (CAT_KD, MAP),
    "dist": (dist, LOGITS),
    "dist, T 4": (partial(dist, T=4.0), LOGITS),
    "ft": (FT, MAP),
    "itrd": (ITRD, VECTOR),
    "kd_loss, standardised": (standardised_kd, LOGITS),
    "l2_loss": (partial(l2_loss, feat_norm=True, batch_mean=True), MAP),
    "nst": (neuron_selectivity, MAP),
    "pkd": (pearson, MAP),
    "pkt": (probabilistic_transfer, VECTOR),
    "rkd": (relational, VECTOR),
    "sp": (similarity_preserving, MAP),
}


def with_row(x: Tensor, value: float) -> Tensor:
    return torch.cat([x[:2], torch.full_like(x[2:3], value), x[3:]])


def with_channel(x: Tensor, value: float) -> Tensor:
    return torch.cat([x[:, :1], torch.full_like(x[:, 1:2], value), x[:, 2:]], dim=1)


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a row of zeros": lambda x: with_row(x, 0.0),
    "a constant row": lambda x: with_row(x, 3.0),
    "a channel of zeros": lambda x: with_channel(x, 0.0),
    "a constant channel": lambda x: with_channel(x, 3.1),
    "a row of nearly nothing": lambda x: torch.cat([x[:1] * 1e-9, x[1:]]),
    "a channel of nearly nothing": lambda x: torch.cat([x[:, :1] * 1e-9, x[:, 1:]], dim=1),
    "most rows zeros": lambda x: torch.cat([x[:2], torch.zeros_like(x[2:])]),
    "most channels zeros": lambda x: torch.cat([x[:, :2], torch.zeros_like(x[:, 2:])], dim=1),
    "a row twice": lambda x: torch.cat([x[:3], x[2:3], x[4:]]),
    "a row nearly twice": lambda x: torch.cat([x[:3], x[2:3] + 1e-8 * x[3:4], x[4:]]),
    "every row the same": lambda x: x[:1].expand_as(x).clone(),
    "nothing but zeros": torch.zeros_like,
    "nothing but one number": lambda x: torch.full_like(x, 3.1),
}

NOT_OF_ROWS = {
    ("ft", "nothing but zeros"): "the translator's batch norms blow up what rounding leaves of a constant",
    ("ft", "most rows zeros"): "the same",
}
LEARNS_FROM_NOTHING = {
    "at, p 1",
    "cat_kd",
    "dist",
    "dist, T 4",
    "itrd",
    "kd_loss, standardised",
    "l2_loss",
    "pkd",
}
"""Losses whose derivative at zeros is not zero: the others' are of products of two zeros."""


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert student.grad is not None
    return value.detach(), student.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_is_of_ordinary_size(name: str, what: str, dtype: torch.dtype) -> None:
    if (name, what) in NOT_OF_ROWS:
        return
    loss, shape = LOSSES[name]
    student, teacher = (drawn(seed, *shape).to(dtype) for seed in (0, 1))
    _, ordinary = gradient(loss, student, teacher)
    value, found = gradient(loss, INPUTS[what](student), teacher)
    assert value.isfinite() and found.isfinite().all()
    assert found.float().norm() < 100 * ordinary.float().norm()
    if what.startswith("nothing but zeros") and name in LEARNS_FROM_NOTHING:
        assert found.float().norm() > 0.1 * ordinary.float().norm()
    # A teacher that shows nothing gives nothing to blow up either.
    value, found = gradient(loss, student, INPUTS[what](teacher))
    assert value.isfinite() and found.float().norm() < 100 * ordinary.float().norm()


# The former arithmetic, of each loss


def former_dist(student: Tensor, teacher: Tensor) -> Tensor:
    def pearson_of(a: Tensor, b: Tensor, axis: int) -> Tensor:
        a, b = a - a.mean(axis, keepdim=True), b - b.mean(axis, keepdim=True)
        norms = torch.linalg.vector_norm(a, dim=axis) * torch.linalg.vector_norm(b, dim=axis)
        return (a * b).sum(axis) / (norms + 1e-8)

    s, t = student.softmax(1), teacher.softmax(1)
    return (1 - pearson_of(s, t, 1).mean()) + (1 - pearson_of(s, t, 0).mean())


def former_sp(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(1) @ x.flatten(1).T) for x in (student, teacher))
    return (t - s).pow(2).mean()


def former_pkt(student: Tensor, teacher: Tensor) -> Tensor:
    def neighbours(rows: Tensor) -> Tensor:
        rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + 1e-7)
        similarity: Tensor = (rows @ rows.T + 1) / 2
        return similarity / similarity.sum(1, keepdim=True)

    p, q = neighbours(teacher), neighbours(student)
    return (p * torch.log((p + 1e-7) / (q + 1e-7))).mean()


def former_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    def distances(rows: Tensor) -> Tensor:
        squares = rows.pow(2).sum(1)
        found = (squares[:, None] + squares[None, :] - 2 * (rows @ rows.T)).clamp(min=1e-12).sqrt()
        found = found.masked_fill(torch.eye(len(rows), dtype=torch.bool), 0.0)
        return found / (found.sum() / (found > 0).sum().clamp(min=1)).clamp(min=1e-12)

    def angles(rows: Tensor) -> Tensor:
        directions = F.normalize(rows[None, :] - rows[:, None], dim=2)
        return directions @ directions.transpose(1, 2)

    distance = F.smooth_l1_loss(distances(student), distances(teacher))
    return 25.0 * distance + 50.0 * F.smooth_l1_loss(angles(student), angles(teacher))


def former_at(student: Tensor, teacher: Tensor, p: int = 2) -> Tensor:
    s, t = (F.normalize(x.pow(p).mean(1).flatten(1)) for x in (student, teacher))
    return (s - t).pow(2).mean()


def former_nst(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    means = [(a @ b.transpose(1, 2)).pow(2).mean() for a, b in ((t, t), (s, s), (s, t))]
    return means[0] + means[1] - 2 * means[2]


def former_cat_kd(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(F.adaptive_avg_pool2d(x, 2), dim=(2, 3)) for x in (student, teacher))  # type: ignore[arg-type]
    return F.mse_loss(s, t)


def former_pkd(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (
        (x - x.mean((0, 2, 3), keepdim=True)) / (x.std((0, 2, 3), keepdim=True) + 1e-6)
        for x in (student, teacher)
    )
    return 1.0 * F.mse_loss(s, t) / 2


def former_l2(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(1), dim=1) for x in (student, teacher))
    return (s - t).square().sum() / len(s)


def former_standardised_kd(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (student, teacher))
    return kd_loss(s, t, T=2.0)


def former_itrd(student: Tensor, teacher: Tensor) -> Tensor:
    torch.manual_seed(0)
    embed = nn.Linear(VECTOR[1], VECTOR[1]).to(student.dtype)

    def standardised(rows: Tensor) -> Tensor:
        centred = rows - rows.mean(0)
        deviation = torch.linalg.vector_norm(centred, dim=0) / math.sqrt(len(rows) - 1)
        return centred / deviation.clamp(min=torch.finfo(rows.dtype).tiny)

    correlation = (standardised(embed(student)) * standardised(teacher)).mean(0)
    total = (correlation - 1).abs().pow(3.0).sum()
    s, t = F.normalize(student), F.normalize(teacher)
    among = s @ s.T
    joint = among * (t @ t.T)
    among, joint = among / among.diagonal().sum(), joint / joint.diagonal().sum()
    mutual = (among.pow(2) - joint.pow(2)).sum()
    return 2.0 * total.clamp(min=torch.finfo(total.dtype).tiny).log2() + mutual


FORMER: dict[str, Loss] = {
    "at": former_at,
    "at, p 1": partial(former_at, p=1),
    "cat_kd": former_cat_kd,
    "dist": former_dist,
    "itrd": former_itrd,
    "kd_loss, standardised": former_standardised_kd,
    "l2_loss": former_l2,
    "nst": former_nst,
    "pkd": former_pkd,
    "pkt": former_pkt,
    "rkd": former_rkd,
    "sp": former_sp,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("faintest", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("name", FORMER)
@pytest.mark.parametrize("reads", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_rows_with_a_direction_are_as_ever_to_the_bit(
    name: str, faintest: float, dtype: torch.dtype, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lengths read, which spares a CPU the rest where every row has a direction, and with none read."""
    if not reads:
        monkeypatch.setattr(directions, "_all_have_one", lambda norms, share: False)
    loss, shape = LOSSES[name]
    for seed in range(3):
        student, teacher = (drawn(2 * seed + i, *shape, dtype=dtype) for i in range(2))
        if name == "dist":
            # Probabilities this even are faint, and above what rounding makes of them.
            student = torch.cat([student[:1] * faintest * 4, student[1:]])
        else:
            student = torch.cat([student[:1] * faintest, student[1:]])
            teacher = torch.cat([teacher[:2], teacher[2:3] * faintest, teacher[3:]])
        value, found = gradient(loss, student, teacher)
        former_value, former = gradient(FORMER[name], student, teacher)
        assert torch.equal(value, former_value) and torch.equal(found, former)


@pytest.mark.parametrize("dead", [1, 4])
def test_channels_beside_dead_ones_are_as_ever_to_the_bit(dead: int) -> None:
    student, teacher = drawn(0, *MAP), drawn(1, *MAP)
    student[:, :dead], teacher[:3, 2:4] = 0, 0
    value, found = gradient(neuron_selectivity, student, teacher)
    former_value, former = gradient(former_nst, student, teacher)
    assert torch.equal(value, former_value) and torch.equal(found, former)


@pytest.mark.parametrize("name", ["cat_kd", "l2_loss", "pkd"])
def test_rows_beside_zeros_are_as_ever_to_the_bit(name: str) -> None:
    """Losses that compare row with row: what is next to a zero row can't matter."""
    student, teacher = drawn(0, *MAP), drawn(1, *MAP)
    zeros = (slice(None), slice(1, 2)) if name == "pkd" else (slice(2, 3),)
    student[zeros] = 0
    found, former = (gradient(loss, student, teacher)[1] for loss in (LOSSES[name][0], FORMER[name]))
    assert not torch.equal(found[zeros], former[zeros])
    found[zeros], former[zeros] = 0, 0
    assert torch.equal(found, former)


def test_normalized_is_torchs_own_to_the_bit() -> None:
    x, y = drawn(0, 6, 4, 3), drawn(1, 6, 4, 3)
    for dim in (1, 2, (1, 2)):
        s, t = normalized(x, y, dim)
        assert torch.equal(s, F.normalize(x, dim=dim)) and torch.equal(t, F.normalize(y, dim=dim))  # type: ignore[arg-type]


@pytest.mark.parametrize("zeros", [0, 1, 4, 6])
def test_normalized_divides_by_lengths_to_the_bit(zeros: int) -> None:
    x, y = drawn(0, 6, 5), drawn(1, 6, 5)
    for faint in ((x,), (x, y)):
        for one in faint:
            one[:zeros] = 0
        s, t = normalized(x, y)
        of_x, of_y = (torch.linalg.vector_norm(one, dim=1, keepdim=True) for one in (x, y))
        assert torch.equal(s, x / lengths(of_x, like=of_y).clamp_min(1e-12))
        assert torch.equal(t, y / lengths(of_y, like=of_x).clamp_min(1e-12))


@pytest.mark.parametrize("share", [1.0, 0.5, 1.5])
def test_a_row_is_faint_by_the_same_limit_whether_or_not_lengths_are_read(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around the limit itself, the median's share, and around the one below which no length is taken as read."""
    for middle in (1.0, 2 * FAINT):
        norms = torch.tensor([share * FAINT, middle, middle, 1.0])
        given = norms.clone().requires_grad_()
        read = lengths(given)
        read.sum().backward()
        with monkeypatch.context() as patch:
            patch.setattr(directions, "_all_have_one", lambda norms, share: False)
            other = norms.clone().requires_grad_()
            found = lengths(other)
            found.sum().backward()
        assert torch.equal(read, found) and given.grad is not None and other.grad is not None
        assert torch.equal(given.grad, other.grad)


def test_lengths_by_hand() -> None:
    norms = torch.tensor([0.0, 4.0, 2.0, 2.5e-6, 8.0, 1.5e-6, 3.0, 5.0])
    # Of an even number the lower of the two in the middle is the median: 2.
    expected = torch.tensor([2.0, 4.0, 2.0, 2.5e-6, 8.0, 2.0, 3.0, 5.0])
    assert torch.equal(lengths(norms), expected) and FAINT == 1e-6
    # More zeros than not: the mean of the others.
    assert torch.equal(
        lengths(torch.tensor([0.0, 0.0, 0.0, 1.0, 3.0])), torch.tensor([2.0, 2.0, 2.0, 1.0, 3.0])
    )
    # Nothing but zeros: a tenth of what is usual in the other network, of 1 where that has nothing either.
    zeros = torch.zeros(2)
    torch.testing.assert_close(lengths(zeros, like=torch.tensor([5.0, 5.0, 7.0])), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(lengths(zeros, like=zeros), torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(lengths(zeros), torch.tensor([0.1, 0.1]))
    # What rounding leaves is nothing.
    noise = torch.tensor([0.1, 0.1, 5.0])
    assert torch.equal(lengths(torch.tensor([3.0, 1.0, 4.0]), noise=noise), torch.tensor([3.0, 1.0, 1.0]))


def test_what_is_not_finite_stays_so() -> None:
    x = drawn(0, *VECTOR)
    for wrong in (math.nan, math.inf):
        broken = x.clone()
        broken[1, 2] = wrong
        assert normalized(broken, x)[0][1].isnan().any()


def test_nothing_depends_on_values_for_its_shape() -> None:
    with FakeTensorMode() as mode:
        s, t = (mode.from_tensor(drawn(seed, *MAP)) for seed in (0, 1))
        assert normalized(s, t, (2, 3))[0].shape == MAP


def test_a_zero_embedding_of_crd_gives_an_ordinary_gradient() -> None:
    torch.manual_seed(0)
    loss = ContrastiveRepresentation(VECTOR, VECTOR, 20, None, feat_dim=4, K=16, negatives="all").eval()
    nn.init.zeros_(loss.embed_s.bias)
    indices = torch.arange(B)
    student, teacher = drawn(0, *VECTOR), drawn(1, *VECTOR)
    norms = []
    for x in (student, with_row(student, 0.0), torch.zeros_like(student)):
        _, found = gradient(lambda s, t: loss(s, t, indices), x, teacher)
        norms.append(found.norm())
    assert norms[1] < 100 * norms[0] and 0.1 * norms[0] < norms[2] < 100 * norms[0]
