"""What a term does with a loss's record: its weight is multiplied once, unless the spec gives another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcli.distill.terms import Term
from kdcli.errors import SpecError
from kdcli.losses import LOSSES, Loss
from kdcli.records import Step
from kdcli.training.train import train
from tests.distill.methods import mimic_of
from tests.distill.specs import TEACHER, spec_with
from tests.training.runs import run_of

WEIGHTED = sorted(name for name, record in LOSSES.items() if record.weight != 1)


def halved(student: Tensor, teacher: Tensor, *, loss_weight: float = 0.5) -> Tensor:
    """A loss that multiplies by its own weight, as a user may write one."""
    return (student - teacher).square().mean() * loss_weight


def first_loss(name: str, **kwargs: Any) -> tuple[float, list[Tensor], Term]:
    """Of a run's first step: the loss on record, and what the loss itself gave for each pair."""
    with run_of(spec_with(mimic_of(name, TEACHER, **kwargs), "trainer.log_freq=1")) as run:
        (term,) = (t for t in run.trainee.modules() if isinstance(t, Term))
        given: list[Tensor] = []

        def heard(call: Any) -> Any:
            def called(**inputs: Any) -> Tensor:
                given.append(call(**inputs))
                return given[-1]

            return called

        term.calls = [heard(call) for call in term.calls]
        step = next(record for record in train(run) if isinstance(record, Step))
    key = next(key for key in step.losses if key.startswith("mimic_job0"))
    pairs = 1 if term.record.whole_list else len(term.pairs)
    return float(step.losses[key]), [one.detach() for one in given[-pairs:]], term


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_terms_loss_is_what_the_loss_gives_times_its_records_weight(name: str) -> None:
    loss, given, term = first_loss(name)
    weighted = torch.stack([one * LOSSES[name].weight for one in given]).sum()
    assert loss == float(weighted) and loss != 0
    assert term.loss_weight == LOSSES[name].weight


@pytest.mark.parametrize(
    ("adapter", "layers", "made"),
    [
        (None, "[model.layer3]", "MlpAdapter"),
        ("auto", "[model.layer3]", "AutoAdapter"),
        ("{type: mlp, kwargs: {depth: 1}}", "[model.layer3]", "MlpAdapter"),
        (None, "[logits]", ""),
        ("auto", "[logits]", "Identity"),
    ],
)
def test_the_adapter_of_a_loss_is_its_records_where_the_spec_names_none(
    adapter: str | None, layers: str, made: str
) -> None:
    changes = [] if adapter is None else [f"mimic.adapter={adapter}"]
    taps = [f"mimic.{side}.mimic_name={layers}" for side in ("student", "teacher0")]
    with run_of(spec_with(mimic_of("cosine", TEACHER), *taps, *changes)) as run:
        (term,) = (t for t in run.trainee.modules() if isinstance(t, Term))
    assert LOSSES["cosine"].adapter == "mlp"
    assert (type(term.adapters[0]).__name__ if term.adapters is not None else "") == made
    assert not [m for m in term.modules() if "BatchNorm" in type(m).__name__]


@pytest.mark.parametrize("name", ["at", "cc", "kd_loss"])
def test_a_weight_in_the_spec_stands_in_place_of_the_records(name: str) -> None:
    loss, given, term = first_loss(name, loss_weight=0.3)
    assert loss == float(torch.stack([one * 0.3 for one in given]).sum())
    assert term.loss_weight == 0.3


def test_a_loss_of_tokens_refuses_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "l2_loss", replace(LOSSES["l2_loss"], takes="tokens"))
    with (
        pytest.raises(SpecError, match="takes tokens") as caught,
        run_of(spec_with(mimic_of("l2_loss", TEACHER))),
    ):
        pass
    assert caught.value.diagnostics[0].code == "KD451"


@pytest.mark.parametrize(("kwargs", "weight"), [({}, 0.5), ({"loss_weight": 4.0}, 4.0)])
def test_a_loss_that_takes_its_weight_itself_is_not_multiplied_again(
    kwargs: dict[str, float], weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "kd_loss", Loss(f"{__name__}:halved", kind="logit"))
    loss, given, term = first_loss("kd_loss", **kwargs)
    assert loss == float(given[0]) and term.loss_weight == weight
