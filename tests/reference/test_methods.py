"""Every loss has a block that validate accepts, and every method is told."""

from __future__ import annotations

import pytest

from kdcli.codes import CODES
from kdcli.commands import words
from kdcli.commands.options import ExplainOptions, MethodsOptions
from kdcli.distill.mimickers import MIMICKERS
from kdcli.errors import UsageError
from kdcli.losses import LOSSES
from kdcli.reference.methods import fragment, method_fragment, method_of
from tests.check.check_cases import CIFAR, examined


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_validate_accepts_the_fragment(loss: str) -> None:
    found = examined("fragment.yaml", CIFAR + fragment(loss))
    assert [f"{one.code}: {one.message}" for one in found if one.severity == "error"] == []


PEER = ", {name: peer, type: peer, kwargs: {network: cifar_resnet8x4, kwargs: {num_classes: 10}}}]"
STUDENT = "{name: model, type: cifar_resnet8x4, kwargs: {num_classes: 10}}"
MUTUAL = CIFAR.replace(STUDENT, f"[{STUDENT}{PEER}").replace("teacher0", "x-teacher")


@pytest.mark.parametrize(("method", "text"), [("base", CIFAR), ("Mutual", MUTUAL)])
def test_validate_accepts_the_fragment_of_a_method(method: str, text: str) -> None:
    """Those of detectors: test_check_detectors.py."""
    found = examined("fragment.yaml", text + method_fragment(method))
    assert [f"{one.code}: {one.message}" for one in found if one.severity == "error"] == []


@pytest.mark.parametrize("name", sorted([*LOSSES, *MIMICKERS]))
def test_each_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words.methods(MethodsOptions(name=name))
    assert capsys.readouterr().out.startswith(name)


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    words.methods(MethodsOptions(name=None))
    text = capsys.readouterr().out
    assert all(f"{name} " in text for name in [*LOSSES, *MIMICKERS])


def test_codes_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    code = next(iter(CODES))
    words.explain(ExplainOptions(code=code.lower()))
    assert CODES[code].title in capsys.readouterr().out


def test_slips_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="kd_los"):
        words.methods(MethodsOptions(name="kd_los"))
    with pytest.raises(UsageError):
        words.explain(ExplainOptions(code="KD999"))


def test_the_base_method() -> None:
    method = method_of("base")
    assert method.extra and method.losses == (("loss", "l2_loss"),)
