"""Every loss has a block that validate accepts, and every method is told."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import cast

import pytest

from kdcli.codes import CODES
from kdcli.commands import reference
from kdcli.commands.help_options import ExplainOptions, MethodsOptions
from kdcli.distill.mimickers import MIMICKERS
from kdcli.distill.mimickers.mimicker import Mimicker
from kdcli.errors import UsageError
from kdcli.losses import LOSSES
from kdcli.reference.methods import fragment, method_fragment, method_of
from kdcli.reference.tables import tables
from kdcli.spec.check.components import check_arguments, check_type
from kdcli.spec.check.resolve import check_references
from kdcli.spec.check.signatures import options_of, signature
from kdcli.spec.tables import Method, OwnLoss
from tests.check.check_cases import CIFAR, examined
from tests.training.runs import spec_of


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


@pytest.mark.parametrize(
    ("losses", "line"),
    [
        ({}, "loss: {type: l2_loss, kwargs: {feat_norm: false, batch_mean: false}}"),
        ({"maps": OwnLoss(type="cwd")}, "maps: {type: cwd}"),
    ],
)
def test_a_method_without_an_example_is_shown_by_a_loss(
    losses: dict[str, OwnLoss], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own first one; a method that takes any losses by l2_loss."""
    target = "kdcli.distill.mimickers.base:BaseMimicker"
    method = Method(target, losses=losses, extra_losses=not losses)
    monkeypatch.setitem(cast("dict[str, Method]", MIMICKERS), "Centred", method)
    block = method_fragment("Centred")
    assert f"\n  mimic_ins_type: Centred\n  cfgs:\n    {line}\n" in block
    assert not list(check_references(spec_of(CIFAR + block), tables()))


@pytest.mark.parametrize("name", sorted([*LOSSES, *MIMICKERS]))
def test_each_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference.methods(MethodsOptions(name=name))
    assert capsys.readouterr().out.startswith(name)


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    reference.methods(MethodsOptions(name=None))
    text = capsys.readouterr().out
    assert all(f"{name} " in text for name in [*LOSSES, *MIMICKERS])


def test_codes_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    code = next(iter(CODES))
    reference.explain(ExplainOptions(word=code.lower()))
    assert CODES[code].title in capsys.readouterr().out


def test_slips_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="kd_los"):
        reference.methods(MethodsOptions(name="kd_los"))
    with pytest.raises(UsageError):
        reference.explain(ExplainOptions(word="KD999"))


@pytest.mark.parametrize("name", sorted(MIMICKERS))
def test_a_methods_record_is_true_of_its_class(name: str) -> None:
    """What each loss of it then does: test_printed_blocks.py."""
    record = MIMICKERS[name]
    method = record.load()
    assert issubclass(method, Mimicker) and method.kdcli_record is record
    assert record.options.__dataclass_params__.frozen and record.options() == record.options_of({})
    options = options_of(record.options)
    source = Path(inspect.getsourcefile(method) or "").read_text()
    read = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    for option in options.values():
        assert option.meaning and not option.required
        assert not list(check_type(option.name, option.default, option.annotation, (), name)), option.name
        assert option.name in read, f"{method.__name__} never reads `{option.name}`"
    assert {name for name in read if name in options} == options.keys()
    assert method.__annotations__.get("options", "NoOptions") == record.options.__name__
    for loss in record.losses.values():
        taken = signature(LOSSES[loss.type])
        assert taken is not None and not list(check_arguments(loss.kwargs, taken, (), loss.type))
    assert not options.keys() & record.losses.keys()
    assert record.example is None or set(record.example.losses) <= record.losses.keys()
    assert not record.peers or not record.paired


def test_the_base_method() -> None:
    method = method_of("base")
    assert method.record.extra_losses and method.record.losses["loss"].type == "l2_loss"


def test_options_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    reference.methods(MethodsOptions(name="FRS"))
    text = capsys.readouterr().out
    for option in options_of(MIMICKERS["FRS"].options).values():
        assert option.name in text and option.meaning in text
