"""The classification head, its losses and predictions, and ADAP."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.models.adapt import Adapt
from kdcli.models.heads import CLS_LOSSES, ClsHead, ClsPostProcess

LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
LABELS = torch.tensor([0, 1])


def loss_of(spec: dict[str, Any] | None, **fields: Tensor) -> float:
    post = ClsPostProcess(cls_loss=spec)
    outputs = post({"logits": LOGITS, "labels": LABELS, **fields})
    return float(outputs["loss"])


def test_head_pools_and_classifies() -> None:
    head = ClsHead([4, 8], num_classes=5)
    x = torch.randn(2, 8, 3, 3)
    logits = head({"features": [torch.zeros(2, 4, 6, 6), x]})["logits"]
    assert torch.allclose(logits, x.mean((2, 3)) @ head.classifier.weight.T, atol=1e-6)
    assert [*head.state_dict()] == ["classifier.weight", "classifier.bias"]
    big = ClsHead(2000, num_classes=50).classifier
    assert isinstance(big, nn.Linear)
    assert big.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert ClsHead([4, 8], num_classes=5, input_feature_idx=0).classifier.in_features == 4
    vectors = ClsHead(in_plane=8, num_classes=5, use_pool=False, dropout=0.5)
    assert vectors({"features": [torch.randn(2, 8)]})["logits"].shape == (2, 5)
    several = ClsHead(8, num_classes=[2, 3])
    assert [part.shape[1] for part in several({"features": [x]})["logits"]] == [2, 3]
    with pytest.raises(ValueError):
        ClsHead(num_classes=3)


def test_cross_entropy_by_hand() -> None:
    # p(0) = 3/4 for the first, 1/2 for the second.
    wanted = (math.log(4 / 3) + math.log(2)) / 2
    for spec in (None, {"type": "ce"}, {"type": "softmax_cross_entropy"}):
        assert loss_of(spec) == pytest.approx(wanted)
    assert loss_of({"type": "ce", "kwargs": {"loss_weight": 0.5}}) == pytest.approx(wanted / 2)


def test_label_smoothing_by_hand() -> None:
    spec = {"type": "label_smooth_ce", "kwargs": {"smooth_ratio": 0.2, "num_classes": 2}}
    wanted = (0.9 * math.log(4 / 3) + 0.1 * math.log(4) + math.log(2)) / 2
    assert loss_of(spec) == pytest.approx(wanted)
    torch_own = nn.CrossEntropyLoss(label_smoothing=0.2)(LOGITS, LABELS)
    assert loss_of(spec) == pytest.approx(float(torch_own))
    with pytest.raises(RunError, match=r"KD417: .*`num_classes: 3`, but there are 2 logits"):
        loss_of({"type": "label_smooth_ce", "kwargs": {"smooth_ratio": 0.2, "num_classes": 3}})


def test_bce_by_hand() -> None:
    # Sigmoid: 3/4 and 1/2 for the first sample, 1/2 and 1/2 for the second.
    assert loss_of({"type": "bce"}) == pytest.approx((math.log(4 / 3) + 3 * math.log(2)) / 4)
    mixed = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    lowered = nn.BCEWithLogitsLoss()(LOGITS - math.log(2), mixed) * 2
    assert loss_of({"type": "bce", "kwargs": {"bias": True}}, mixed_labels=mixed) == pytest.approx(
        float(lowered)
    )


@pytest.mark.parametrize("kind", sorted(set(CLS_LOSSES) - {"softmax_eql", "softmax_eqlv2"}))
def test_mixed_targets_are_used_and_agree_with_labels(kind: str) -> None:
    kwargs = {"smooth_ratio": 0.1, "num_classes": 2} if kind == "label_smooth_ce" else {}
    spec = {"type": kind, "kwargs": kwargs}
    plain = loss_of(spec)
    assert loss_of(spec, mixed_labels=torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(plain)
    other = loss_of(spec, mixed_labels=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    half = loss_of(spec, mixed_labels=torch.full((2, 2), 0.5))
    assert half == pytest.approx((plain + other) / 2, rel=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "cross"}, {"kwargs": {}}, {"type": "ce", "weight": 1},
        {"type": "ce", "kwargs": {"smooth": 1}},
        {"type": "label_smooth_ce", "kwargs": {"smooth_ratio": 0.1}},
    ],
)  # fmt: skip
def test_a_wrong_cls_loss_is_told(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ClsPostProcess(cls_loss=spec)


def test_training_gives_loss_and_accuracy_evaluation_predictions() -> None:
    post = ClsPostProcess()
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]], requires_grad=True)
    outputs = post({"logits": logits, "labels": torch.tensor([0, 1, 1])})
    assert outputs["accuracy"].item() == pytest.approx(2 / 3)
    assert not outputs["accuracy"].requires_grad
    assert outputs["loss"].requires_grad
    outputs = post.eval()({"logits": logits})
    assert outputs["preds"].tolist() == [0, 1, 0]
    assert torch.allclose(outputs["scores"].sum(1), torch.ones(3))


def test_several_heads_sum_their_losses() -> None:
    post = ClsPostProcess()
    labels = torch.tensor([[0, 1], [1, 1]])
    outputs = post({"logits": [LOGITS, LOGITS], "labels": labels})
    parts = [loss_of(None, labels=labels[:, index]) for index in range(2)]
    assert float(outputs["loss"]) == pytest.approx(sum(parts))
    assert float(outputs["accuracy"]) == pytest.approx(0.25)
    assert [p.tolist() for p in post.eval()({"logits": [LOGITS, LOGITS]})["preds"]] == [[0, 0], [0, 0]]


def test_adap_brings_features_to_other_widths() -> None:
    features = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    adapt = Adapt([4, 6], outplanes=[5, 7], out_layers=[0, 1], with_relu=True, do_init_weights=True)
    outputs = adapt({"features": features})
    assert [f.shape for f in outputs["adapt_neck_features"]] == [(2, 5, 8, 8), (2, 7, 4, 4)]
    assert isinstance(adapt.get_submodule("conv.1.0"), nn.Conv2d)
    assert isinstance(adapt.get_submodule("conv.1.1"), nn.ReLU)
    assert max(conv[0].weight.abs().max().item() for conv in adapt.conv) < 2e-4
    assert adapt.outplanes is None
    plain = Adapt([4, 6], outplanes=[5, 7], out_layers=[0, 1])
    plain.load_state_dict(adapt.state_dict())
    below = plain({"features": features})["adapt_neck_features"]
    for rectified, f in zip(outputs["adapt_neck_features"], below, strict=True):
        assert torch.equal(rectified, f.clamp(min=0)) and bool((f < 0).any())
    assert (
        min(conv[0].weight.abs().max().item() for conv in Adapt([4], outplanes=5, out_layers=[0]).conv) > 0.01
    )
    one = Adapt(4, outplanes=5, out_layers=[1], kernel_size=1, out_name="adapt_bb_features")
    assert one.conv[0][0].kernel_size == (1, 1)
    assert len(one.conv[0]) == 1
    for wrong in ({"out_layers": [2]}, {"outplanes": [3]}, {"kernel_size": 5}, {"out_name": "features"}):
        with pytest.raises(ValueError):
            Adapt([4, 6], **{"outplanes": 5, "out_layers": [0, 1], **wrong})  # type: ignore[arg-type]


def test_each_head_may_have_a_loss_of_its_own() -> None:
    smooth = {"type": "label_smooth_ce", "kwargs": {"smooth_ratio": 0.2, "num_classes": 2}}
    post = ClsPostProcess(cls_loss=[{"type": "ce"}, smooth])
    batch = {"logits": [LOGITS, LOGITS], "labels": LABELS[:, None].repeat(1, 2)}
    plain = (math.log(4 / 3) + math.log(2)) / 2
    smoothed = (0.9 * math.log(4 / 3) + 0.1 * math.log(4) + math.log(2)) / 2
    assert float(post(batch)["loss"]) == pytest.approx(plain + smoothed)
    with pytest.raises(RunError, match="`cls_loss` lists 2 losses, and the head gives 1 logits"):
        post({"logits": LOGITS, "labels": LABELS})
    with pytest.raises(RunError, match=r"KD584: the head gives 2 logits, and a sample has 1 label$"):
        post({"logits": [LOGITS, LOGITS], "labels": LABELS})


def test_a_head_learns_from_its_own_mixed_labels() -> None:
    mixed = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    labels = torch.tensor([[0, 1], [1, 1]])
    batch = {"logits": [LOGITS, LOGITS], "labels": labels}
    alone = ClsPostProcess()(batch)["loss"]
    assert torch.allclose(ClsPostProcess()({**batch, "mixed_labels": mixed})["loss"], alone)


def test_a_list_of_losses_with_a_state_has_their_names() -> None:
    eql = {"type": "softmax_eql", "kwargs": {"num_classes": 2}}
    names = ClsPostProcess(cls_loss=[{"type": "ce"}, eql]).state_dict()
    assert [*names] == [f"cls_loss.1.{name}" for name in ("pos_grad", "neg_grad", "pos_neg")]
