"""What the table says of each loss: it agrees with the code, and the weight is multiplied by the term alone."""

from __future__ import annotations

import inspect
from typing import get_args, get_type_hints

import pytest

from kdcli.distill.terms import binding_of
from kdcli.errors import KdError
from kdcli.losses import LOSSES, Loss
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.check.signatures import signature
from kdcli.spec.tables import Kind, Place, Takes

from .cases import forward_of, keyword_only, make_case, positional

NAMES = sorted(LOSSES)

WEIGHTS = {
    "at": 1000.0,
    "cat_kd": 400.0,
    "cc": 0.02,
    "crd": 0.8,
    "fitnet": 100.0,
    "fsp": 50.0,
    "ft": 200.0,
    "mgd": 7e-5,
    "nst": 50.0,
    "ofd": 1e-3,
    "pkt": 30000.0,
    "sp": 3000.0,
    "tfkd_reg": 0.1,
    "tfkd_self": 0.95,
    "wkd_f": 0.02,
    "wsld": 2.5,
}
"""The authors' own; every other loss has 1."""


def test_the_authors_weights() -> None:
    assert {name: record.weight for name, record in LOSSES.items() if record.weight != 1} == WEIGHTS


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_may_give_a_weight_with_the_records_as_default(name: str) -> None:
    taken = signature(LOSSES[name])
    assert taken is not None
    option = taken.kwargs["loss_weight"]
    assert (option.default, option.type_text, option.required) == (
        LOSSES[name].weight,
        "float (at least 0)",
        False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_record_agrees_with_its_code(name: str) -> None:
    record = LOSSES[name]
    target = record.load()
    forward, options = forward_of(target), keyword_only(target)
    bound = positional(forward)
    features = [bound[side] for side in ("student", "teacher") if side in bound]

    assert record.kind in get_args(Kind) and record.takes in get_args(Takes)
    assert {*record.example, *record.teacher_example} <= {*get_args(Place)}
    assert "loss_weight" not in options
    assert (record.kind == "teacher-free") == ("teacher" not in bound)
    assert record.trains_student == bool({"student", "student_logits"} & bound.keys())
    assert record.whole_list == any("Sequence" in str(feature.annotation) for feature in features)
    assert not (record.whole_list and record.mean_over_pairs)
    assert not record.softened or "T" in options
    assert not record.divides_by_mask or ("mask" in bound and "batch_mean" in options)
    assert record.takes_over is None or record.takes_over in LOSSES

    stateful = inspect.isclass(target)
    assert not stateful or issubclass(target, StatefulLoss)
    overridden = {
        hook
        for hook in ("prepare", "prepared", "inherit", "student_end")
        if stateful and hook in vars(target)
    }
    assert ("prepare" in overridden) == ("prepared" in overridden) == record.prepares
    assert ("inherit" in overridden) == (record.takes_over is not None)
    assert ("student_end" in overridden) == record.replaces_end
    # A loss that is made from both shapes joins unlike ones by itself.
    assert not (record.unlike_shapes and binding_of(record).sizes_itself)


@pytest.mark.parametrize("name", [n for n in NAMES if not inspect.isclass(LOSSES[n].load())])
def test_a_function_of_two_features_takes_unlike_shapes_where_its_record_says_so(name: str) -> None:
    record = LOSSES[name]
    case = make_case(name)
    if "teacher" not in case.inputs or record.takes == "logits":
        return
    whole = case.inputs["student"]
    narrower = [x[..., :2] for x in whole] if isinstance(whole, list) else whole[..., :2]
    if record.unlike_shapes:
        assert case.call(student=narrower).isfinite()
    else:
        with pytest.raises(KdError):
            case.call(student=narrower)


@pytest.mark.parametrize("name", [n for n in NAMES if LOSSES[n].takes == "map"])
def test_a_loss_of_maps_refuses_a_vector(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.losses.cases.SHAPES", ((6,),))
    with pytest.raises(KdError):
        make_case(name)


def test_every_field_of_a_record_is_documented() -> None:
    source = inspect.getsource(Loss).split('"""')
    lines = "".join(source[2::2])
    fields = [name for name in get_type_hints(Loss) if name not in ("path", "preset", "own")]
    assert all(f"{name}:" in lines for name in fields) and len(source[1::2]) == len(fields) + 1
