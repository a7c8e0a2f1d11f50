"""`ema`: where it may stand, and what its numbers may be."""

from __future__ import annotations

import pytest

from kdcli.spec.schema import Ema
from tests.spec.specs import BASE, changed, findings, good

NOTE = "x-note: anything at all"


def average(text: str, *assignments: str) -> Ema | None:
    return good(text, *assignments).spec.trainer.ema


def test_the_top_level_and_trainer_are_one_place() -> None:
    top = changed((NOTE, "ema:\n  enable: true\n  ema_type: exp\n  kwargs: {decay: 0.9998}"))
    under = changed(
        ("max_epoch: 10", "max_epoch: 10\n  ema: {enable: true, ema_type: exp, kwargs: {decay: 0.9998}}")
    )
    ema = average(top)
    assert ema is not None and ema == average(under)
    assert (ema.ema_type, ema.kwargs.decay, ema.kwargs.inner_T, ema.kwargs.warmup) == ("exp", 0.9998, 1, 1)
    assert good(top).hash() == good(under).hash()
    assert good(good(top).resolved_yaml()).spec == good(top).spec


def test_the_top_level_can_be_set_and_taken_away_by_arguments() -> None:
    ema = average(BASE, "ema.enable=true", "ema.kwargs.decay=0.9")
    assert ema is not None and ema.enable and ema.kwargs.decay == 0.9
    top = changed((NOTE, "ema: {kwargs: {decay: 0.99}}"))
    assert average(top, "ema=") is None
    off = average(top, "ema.enable=false")
    assert off is not None and not off.enable


def test_a_slip_at_the_top_level_is_shown_there() -> None:
    found = findings(changed((NOTE, "ema: {enable: true, kwargs: {decy: 0.99}}")))
    assert [(one.code, one.span and one.span.line, one.help) for one in found] == [
        ("KD202", 1, "did you mean `decay`?")
    ]


def test_the_same_in_both_places_is_one_average_another_an_error_at_the_second() -> None:
    both = ("max_epoch: 10", "max_epoch: 10\n  ema: {enable: true, kwargs: {decay: 0.99}}")
    assert findings(changed((NOTE, "ema: {kwargs: {decay: 0.99}, enable: true}"), both)) == []
    text = changed(both) + "\nema: {enable: true, kwargs: {decay: 0.999}}\n"
    (found,) = findings(text)
    assert found.code == "KD225" and found.span is not None
    assert found.span.line == text.rstrip().count("\n") + 1
    (found,) = findings(changed((NOTE, "ema: {kwargs: {decay: 0.99}}")), "trainer.ema.kwargs.decay=0.9")
    assert found.code == "KD225" and found.span is not None and found.span.source == "argument 1"
    assert "cfg.yaml, line 1" in (found.help or "")


@pytest.mark.parametrize("place", ["ema", "trainer.ema"])
@pytest.mark.parametrize("key", ["warmup", "inner_T"])
@pytest.mark.parametrize("zero", ["0", "0.0"])
def test_zero_is_read_as_one_and_said(place: str, key: str, zero: str) -> None:
    argument = f"{place}.kwargs.{key}={zero}"
    (found,) = findings(BASE, argument)
    assert (found.code, found.severity, found.message) == ("KD619", "warning", f"`{key}: 0` is read as 1")
    assert found.span is not None and found.span.column == argument.index("=") + 2
    ema = average(BASE, argument)
    assert ema is not None and (ema.kwargs.warmup, ema.kwargs.inner_T) == (1, 1)


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("ema.kwargs.decay=1", "KD206"),
        ("ema.kwargs.decay=1.0", "KD206"),
        ("ema.kwargs.decay=-0.1", "KD206"),
        ("ema.kwargs.decay=0", None),
        ("ema.kwargs.warmup=-1", "KD206"),
        ("ema.kwargs.inner_T=-1", "KD206"),
        ("ema.kwargs.warmup=false", "KD204"),
        ("ema.kwargs.warmup=1e3", None),
        ("ema=true", "KD204"),
    ],
)
def test_what_the_numbers_may_be(argument: str, code: str | None) -> None:
    assert [one.code for one in findings(BASE, argument)] == ([] if code is None else [code])
