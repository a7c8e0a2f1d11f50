"""softmax_eql and its second version by hand: what the collected gradients do to a loss, and how they are collected."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdcli.errors import RunError
from kdcli.models.balanced_losses import SoftmaxEql, SoftmaxEqlV2
from kdcli.models.heads import ClsPostProcess

ZEROS = torch.zeros(1, 2)


def loss_of(kind: type[SoftmaxEql], label: int, **kwargs: Any) -> float:
    """The loss of two equal logits after gradients of 4 and 1 at the own class, 1 and 2 at the others."""
    loss = kind(num_classes=2, **kwargs)
    loss.pos_grad.copy_(torch.tensor([4.0, 1.0]))
    loss.neg_grad.copy_(torch.tensor([1.0, 2.0]))
    loss.pos_neg.copy_(torch.tensor([4.0, 0.5]))
    return float(loss(ZEROS, torch.tensor([label])))


@pytest.mark.parametrize(
    ("label", "kwargs", "odds"),
    [
        # The odds of the other class are r_other / r_own, to the power of tau.
        (0, {}, 1 / 4),
        (1, {}, 4.0),
        (0, {"tau": 0.5}, 1 / 2),
        (0, {"tau": 0.0}, 1.0),
        (0, {"indicator": "neg"}, 2.0),
        # 4 + 1 and 0.5 + 2.
        (0, {"indicator": "pos_and_neg"}, 1 / 2),
        (0, {"eps": 2.0}, 1 / 2),
    ],
)
def test_a_rarer_class_counts_less_as_a_negative(label: int, kwargs: dict[str, Any], odds: float) -> None:
    assert loss_of(SoftmaxEql, label, **kwargs) == pytest.approx(math.log(1 + odds), rel=1e-5)
    assert loss_of(SoftmaxEql, label, loss_weight=0.5, **kwargs) == pytest.approx(
        math.log(1 + odds) / 2, rel=1e-5
    )


def test_the_second_version_raises_every_logit_by_its_share() -> None:
    # Shares 4/5 and 1/5; their square roots are 2 : 1.
    assert loss_of(SoftmaxEqlV2, 0) == pytest.approx(math.log(5 / 4), rel=1e-4)
    assert loss_of(SoftmaxEqlV2, 1, tau=0.5) == pytest.approx(math.log(3), rel=1e-4)


def test_gradients_are_collected_while_training() -> None:
    post = ClsPostProcess(cls_loss={"type": "softmax_eql", "kwargs": {"num_classes": 2, "loss_weight": 2.0}})
    state = {name: value.tolist() for name, value in post.state_dict().items()}
    assert state == {"cls_loss.pos_grad": [0, 0], "cls_loss.neg_grad": [0, 0], "cls_loss.pos_neg": [1, 1]}
    logits = torch.zeros(4, 2)
    batch = {"logits": logits, "labels": torch.tensor([0, 0, 0, 1])}
    # Nothing is collected yet: cross entropy, twice.
    assert float(post(batch)["loss"]) == pytest.approx(2 * math.log(2))
    # Each of 4 samples has a gradient of 2 * 0.5 / 4 at its own class and the same at the other.
    assert post.state_dict()["cls_loss.pos_grad"].tolist() == pytest.approx([0.75, 0.25])
    assert post.state_dict()["cls_loss.neg_grad"].tolist() == pytest.approx([0.25, 0.75])
    assert post.state_dict()["cls_loss.pos_neg"].tolist() == pytest.approx([3.0, 1 / 3])
    post.eval()(batch)
    assert post.state_dict()["cls_loss.pos_grad"].tolist() == pytest.approx([0.75, 0.25])


def test_mixed_labels_are_refused() -> None:
    loss = SoftmaxEql(num_classes=2)
    with pytest.raises(RunError, match="KD417: softmax_eql needs class indices"):
        loss(ZEROS, torch.tensor([[0.5, 0.5]]))
    with pytest.raises(RunError, match="`num_classes: 2`, but there are 3 logits"):
        loss(torch.zeros(1, 3), torch.tensor([0]))
