"""Contrastive representation distillation and its memories."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.errors import RunError
from kdcli.losses import crd
from kdcli.losses.crd import ContrastiveRepresentation
from kdcli.losses.parts.draws import drawn_integers
from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from tests.training.runs import SPEC, spec_of

INDICES = torch.tensor([7, 2, 5])


LABELS = np.array([0, 2, 1, 1, 2, 0, 2, 1, 2])


def made(labels: NDArray[np.int64] | None = LABELS, **kwargs: Any) -> ContrastiveRepresentation:
    torch.manual_seed(0)
    return ContrastiveRepresentation((3, 4), (3, 6), 9, labels, feat_dim=8, **{"K": 5, **kwargs}).double()


def features(seed: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(3, 4, generator=random, dtype=torch.float64),
        torch.randn(3, 6, generator=random, dtype=torch.float64),
    )


def estimate(
    loss: ContrastiveRepresentation, embedded: Tensor, memory: Tensor, drawn: Tensor, T: float
) -> float:
    """The formula of the paper, number by number."""
    scores = [
        [math.exp(float(memory[j] @ v.detach()) / T) for j in row]
        for v, row in zip(embedded, drawn, strict=True)
    ]
    z = sum(map(sum, scores)) / 18 * 9
    total, noise = 0.0, 5 / 9
    for row in scores:
        own, *others = [score / z for score in row]
        total -= math.log(own / (own + noise + 1e-7))
        total -= sum(math.log(noise / (other + noise + 1e-7)) for other in others)
    return total / 3


@pytest.mark.parametrize("T", [0.07, 0.5])
def test_it_is_the_noise_contrastive_estimate_both_ways(T: float) -> None:
    loss = made() if T == 0.07 else made(T=T)
    student, teacher = features()
    drawn = loss.draw(INDICES, 0)
    assert drawn.shape == (3, 6) and torch.equal(drawn[:, 0], INDICES)
    v1, v2 = loss.embed_s(student), loss.embed_t(teacher)
    v1, v2 = v1 / v1.norm(dim=1, keepdim=True), v2 / v2.norm(dim=1, keepdim=True)
    expected = estimate(loss, v1, loss.memory_v2, drawn, T) + estimate(loss, v2, loss.memory_v1, drawn, T)
    assert math.isclose(loss.contrast(student, teacher, INDICES, drawn).item(), expected, rel_tol=1e-9)


def test_negatives_are_of_other_classes_each_as_likely() -> None:
    loss = made(K=4000)
    assert not {"labels", "ordered", "class_starts", "class_sizes"} & loss.state_dict().keys(), (
        "of the data alone"
    )
    drawn = loss.draw(INDICES, 3)
    others = {7: [0, 1, 4, 5, 6, 8], 2: [0, 1, 4, 5, 6, 8], 5: [1, 2, 3, 4, 6, 7, 8]}
    for row, (sample, allowed) in zip(drawn, others.items(), strict=True):
        assert row[0] == sample
        counts = torch.bincount(row[1:], minlength=9)
        assert counts.nonzero()[:, 0].tolist() == allowed
        assert (counts[allowed] - 4000 / len(allowed)).abs().max() < 5 * math.sqrt(4000 / len(allowed))
    assert not torch.equal(drawn, loss.draw(INDICES, 4))


def test_negatives_of_all_classes_are_drawn_as_they_were_before_there_was_a_choice() -> None:
    loss = made(None, negatives="all")
    expected = drawn_integers(loss.salt, 3, INDICES, 5, below=9)
    assert torch.equal(loss.draw(INDICES, 3)[:, 1:], expected)
    assert made(negatives="all", K=4000).draw(INDICES, 0)[0, 1:].unique().tolist() == list(range(9))


def test_two_classes_leave_each_other() -> None:
    # By hand: sample 0 is the only one of its class, so that all of its negatives are 1 and 2.
    torch.manual_seed(0)
    loss = ContrastiveRepresentation((3, 4), (3, 6), 3, np.array([5, 0, 0]), feat_dim=8, K=50)
    drawn = loss.draw(torch.tensor([0, 1, 2]), 0)[:, 1:]
    assert drawn[0].unique().tolist() == [1, 2] and drawn[1:].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "why"), [(None, "does not say the label"), (np.zeros(9, dtype=np.int64), "one class")]
)
def test_without_other_classes_it_says_what_to_do(labels: NDArray[np.int64] | None, why: str) -> None:
    with pytest.raises(RunError, match=f"KD708.*{why}") as caught:
        made(labels)
    assert "negatives: all" in (caught.value.diagnostics[0].help or "")
    made(labels, negatives="all")


@pytest.mark.parametrize(
    ("negatives", "codes"), [("", ["KD326"]), (", negatives: other", ["KD326"]), (", negatives: all", [])]
)
def test_mixed_labels_leave_no_other_class(negatives: str, codes: list[str]) -> None:
    mixing = "{batch_fn: {type: batch_mixup, kwargs: {alpha: 0.2, num_classes: 4}}}"
    parsed = spec_of(
        SPEC,
        f"mimic.cfgs.loss={{type: crd, kwargs: {{K: 4{negatives}}}}}",
        f"dataset.train.dataloader={{type: base, kwargs: {mixing}}}",
    )
    found = check_references(parsed, tables())
    assert [f.code for f in found if f.severity == "error"] == codes
    assert all("`negatives: all`" in (f.help or "") for f in found if f.code == "KD326")


def test_the_rows_of_the_batch_move_in_training_alone() -> None:
    loss = made(momentum=0.75)
    student, teacher = features()
    before = loss.memory_v1.clone()
    loss.eval()(student, teacher, INDICES)
    assert torch.equal(loss.memory_v1, before) and (loss.z < 0).all()
    loss.train()(student, teacher, INDICES)
    embedded = loss.embed_s(student)
    row = 0.75 * before[2] + 0.25 * embedded[1] / embedded[1].norm()
    torch.testing.assert_close(loss.memory_v1[2], row / row.norm())
    others = [0, 1, 3, 4, 6, 8]
    assert torch.equal(loss.memory_v1[others], before[others])
    assert not loss.memory_v1.requires_grad


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    loss = made()
    for seed in range(2):
        loss(*features(seed), INDICES)
    z = loss.z.clone()
    resumed = ContrastiveRepresentation((3, 4), (3, 6), 9, LABELS, feat_dim=8, K=5).double()
    resumed.load_state_dict(loss.state_dict())
    results = []
    for which in (loss, resumed):
        results.append([which(*features(seed), INDICES, seed).item() for seed in (2, 3)])
    assert results[0] == results[1]
    assert torch.equal(loss.z, z), "the first batch has set the normalisers"


def test_a_sample_that_comes_twice_keeps_its_last_row() -> None:
    student, teacher = features()
    one, other = made(), made()
    one(student, teacher, torch.tensor([7, 2, 7]))
    other(student, teacher, torch.tensor([8, 2, 7]))
    assert torch.equal(one.memory_v1[7], other.memory_v1[7])


def test_every_process_takes_in_the_rows_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [(INDICES, *features(1)), (torch.tensor([0, 8, 1]), *features(2))]
    whole = made()
    whole(*(torch.cat([parts[0][i], parts[1][i]]) for i in (1, 2)), torch.cat([p[0] for p in parts]))
    embedded = [
        (i, torch.nn.functional.normalize(whole.embed_s(s)), torch.nn.functional.normalize(whole.embed_t(t)))
        for i, s, t in parts
    ]
    queue = [torch.stack([x.detach() for x in rows]) for rows in zip(*embedded, strict=True)]

    def gather_rows(rows: Tensor) -> Tensor:
        values = queue.pop(0)
        torch.testing.assert_close(values[0], rows)
        return torch.cat(list(values))

    monkeypatch.setattr(crd, "gather_rows", gather_rows)
    own = made()
    own(parts[0][1], parts[0][2], INDICES)
    torch.testing.assert_close(own.memory_v1, whole.memory_v1)
    torch.testing.assert_close(own.memory_v2, whole.memory_v2)
