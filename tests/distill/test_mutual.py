"""Mutual learning: two networks of one `net`, each the other's teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdcli.check.check import CheckOptions, check
from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.errors import SpecError
from kdcli.models.weights import read_weights
from kdcli.records import Saved, Step
from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from kdcli.spec.parse import ParsedSpec
from kdcli.training.guard import prove_losses
from kdcli.training.train import train
from tests.distill.specs import network, spec_with
from tests.training.runs import run_of, train_all

PEER = {
    "name": "peer",
    "type": "peer",
    "kwargs": {"network": "cifar_resnet8", "kwargs": network([2, 4, 4, 6])["kwargs"]},
}
MUTUAL = {"mimic_ins_type": "Mutual", "student": {"mimic_name": ["logits", "peer_logits"]}}


def mutual(*assignments: str, **more: Any) -> ParsedSpec:
    return spec_with({**MUTUAL, **more}, *assignments, net=[network([2, 2, 4, 6]), PEER])


def test_each_learns_from_the_other_and_from_the_labels() -> None:
    with run_of(mutual()) as run:
        batch = dict(next(run.train_loader.batches(0)))
        losses = run.trainee(batch, {}, StepInfo())
        assert set(losses) == {"task.loss", "task.peer_loss", "mimic_job0.loss"}
        view = run.trainee.view(batch)
        one, other = view.features["logits"], view.features["peer_logits"]
        assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        p, q = one.log_softmax(1), other.log_softmax(1)
        both = F.kl_div(p, q, reduction="batchmean", log_target=True) + F.kl_div(
            q, p, reduction="batchmean", log_target=True
        )
        assert torch.allclose(losses["mimic_job0.loss"], both, rtol=1e-4)
        assert torch.allclose(losses["task.peer_loss"], F.cross_entropy(other, batch["labels"]))
        # A teacher gives no gradient: what KL(q‖p) sends to p alone.
        (found,) = torch.autograd.grad(
            losses["mimic_job0.loss"], [run.student.get_parameter("model.fc.bias")]
        )
        wanted = (p.softmax(1) - q.softmax(1)).mean(0)
        assert torch.allclose(found, wanted, atol=1e-6)
        reach = prove_losses(run).reach["mimic_job0.loss"]
        assert {"student.model.conv1.weight", "student.peer.net.conv1.weight"} <= reach


def test_the_peer_trains_and_is_not_exported() -> None:
    with run_of(mutual()) as run:
        before = run.student.get_parameter("peer.net.fc.weight").detach().clone()
        assert len([r for r in train(run) if isinstance(r, Step)]) == 4
        assert not torch.equal(before, run.student.get_parameter("peer.net.fc.weight"))
        assert "student.peer.net.fc.weight" in run.trainee.state_dict()
    exported = read_weights(Path("runs/small/student.safetensors"))
    assert "fc.weight" in exported and not any("peer" in key for key in exported)


def test_it_resumes() -> None:
    def losses(records: list[Any]) -> list[Any]:
        return [(r.step, r.losses) for r in records if isinstance(r, Step)]

    whole = train_all(mutual("saver.save_dir=whole"))
    parts = mutual("saver.save_dir=parts", "saver.auto_resume=true", "trainer.save_every_minutes=1e-9")
    first = []
    with run_of(parts) as run:
        for record in train(run):
            first.append(record)
            if isinstance(record, Saved):
                break
    assert losses(first) + losses(train_all(parts)) == losses(whole)


def test_validate_accepts_it_and_another_loss() -> None:
    for parsed in (mutual(), mutual(cfgs={"loss": {"type": "dkd"}})):
        assert [d for d in check_references(parsed, tables()) if d.severity == "error"] == []
        assert [d for d in check(parsed, CheckOptions()).findings if d.severity == "error"] == []


@pytest.mark.parametrize("taps", [["logits"], ["logits", "model.layer3"]])
def test_one_network_has_no_peer(taps: list[str]) -> None:
    with (
        pytest.raises(SpecError, match="two networks or more") as caught,
        run_of(mutual(student={"mimic_name": taps})),
    ):
        pass
    assert caught.value.diagnostics[0].code == "KD454"


def test_a_peer_is_a_whole_model() -> None:
    part = {"name": "peer", "type": "peer", "kwargs": {"network": "resnet18"}}
    with (
        pytest.raises(SpecError, match="whole model"),
        run_of(spec_with(MUTUAL, net=[network([2, 2, 4, 6]), part])),
    ):
        pass


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"temperature": 4.0}, "KD452", "`temperature` does nothing here"),
        ({"adapter": {"type": "auto"}}, "KD452", "`adapter` does nothing here"),
        (
            {"cfgs": {"loss": {"type": "kd_loss", "standardize": True}}},
            "KD452",
            "`standardize` does nothing here",
        ),
        ({"teacher_weighting": "entropy"}, "KD453", "`Mutual` weighs no teachers"),
    ],
)
def test_an_option_of_the_job_that_mutual_learning_does_not_take_is_refused(
    more: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught, run_of(mutual(**more)):
        pass
    (one,) = caught.value.diagnostics
    assert one.code == code and words in one.message and one.path is not None
