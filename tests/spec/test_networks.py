"""Texts that only show networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.errors import SpecError
from kdcli.spec.check.resolve import check_network
from kdcli.spec.networks import parse_networks, read_networks
from kdcli.spec.text.overrides import parse_assignment
from tests.spec.specs import BASE, TABLES

MODULES = "- {name: backbone, type: resnet18}\n- {name: head, type: head, kwargs: {num_classes: 3}}\n"


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (BASE, ["net", "teacher0"]),
        (BASE.replace("max_epoch: 10", "max_epoch: x").replace("kd_loss", "nonsense"), ["net", "teacher0"]),
        ("teacher0:\n" + indented(MODULES), ["teacher0"]),
        ("net:\n" + indented(MODULES), ["net"]),
        (MODULES, ["net"]),
        ("type: torchvision.resnet18\n", ["net"]),
        ("net: {type: timm.resnet18}\nteacher: {type: timm.resnet50}\n", ["net", "teacher"]),
    ],
)
def test_what_counts_as_networks(text: str, names: list[str]) -> None:
    parsed = parse_networks(text, "t.yaml")
    assert list(parsed.networks) == names
    for name in names:
        assert parsed.networks[name][0].type
        assert parsed.span((*parsed.path(name), 0, "type")).line >= 1


def test_data_and_overrides() -> None:
    parsed = parse_networks(BASE, "t.yaml", overrides=[parse_assignment("classes=3", 1)])
    assert parsed.train is not None
    assert parsed.train.dataset.type == "fake"
    assert parsed.networks["net"][1].kwargs == {"num_classes": 3}


def test_a_finding_has_its_place() -> None:
    parsed = parse_networks(MODULES.replace("head,", "hed,", 1).replace("type: head", "type: hed"), "t.yaml")
    (found,) = check_network(parsed.networks["net"], parsed.path("net"), TABLES)
    located = parsed.locate(found)
    assert located.span is not None
    assert (located.span.line, located.span.column) == (2, 21)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("3", "KD113"),
        ("", "KD113"),
        ("x: &a 1", "KD220"),
        ("- 3", "KD204"),
        ("- {nam: a}", "KD203"),
        ("nett: []", "KD201"),
    ],
)
def test_what_does_not(text: str, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_networks(text, "t.yaml")
    assert code in [one.code for one in caught.value.diagnostics]


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("teacher0: !include net.yaml\n")
    (tmp_path / "net.yaml").write_text(MODULES)
    assert list(read_networks(tmp_path / "t.yaml").networks) == ["teacher0"]
