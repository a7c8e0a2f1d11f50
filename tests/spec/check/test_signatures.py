"""Signatures read from source."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdcli.data import BATCH_FNS, DATASETS, EVALUATORS, IMAGE_READERS, TRANSFORMS
from kdcli.distill import ADAPTERS
from kdcli.distill.mimickers import MIMICKERS
from kdcli.losses import LOSSES
from kdcli.models import MODULES
from kdcli.spec.check.signatures import signature, source_file
from kdcli.spec.tables import Target

EVERY = {
    f"{table_name}.{name}": target
    for table_name, table in (
        ("batch_fns", BATCH_FNS),
        ("datasets", DATASETS),
        ("evaluators", EVALUATORS),
        ("readers", IMAGE_READERS),
        ("transforms", TRANSFORMS),
        ("adapters", ADAPTERS),
        ("mimickers", MIMICKERS),
        ("losses", LOSSES),
        ("modules", MODULES),
    )
    for name, target in table.items()
}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_name_of_every_table_can_be_read(name: str) -> None:
    found = signature(EVERY[name])
    assert found is not None
    for parameter in found.kwargs.values():
        assert parameter.annotation is not None, f"{name}: {parameter.name} has no annotation"
    assert not set(EVERY[name].preset) & set(found.kwargs)


def test_a_function() -> None:
    found = signature(Target("tests.spec.fakes:dkd"))
    assert found is not None
    assert (found.kind, found.facts) == ("function", ("student", "teacher", "labels"))
    assert {n: (p.type_text, p.default) for n, p in found.kwargs.items()} == {
        "alpha": ("float", 1.0),
        "loss_weight": ("float", 1.0),
    }
    assert found.doc == "Decoupled."


def test_a_class_with_forward() -> None:
    found = signature(Target("tests.spec.fakes:Bank"))
    assert found is not None
    assert found.needs == {"student_shape", "num_samples", "student", "teacher", "indices"}
    assert found.kwargs["dim"].required


def test_presets_are_not_to_be_given() -> None:
    found = signature(Target("tests.spec.fakes:ResNet", {"depth": 18}))
    assert found is not None
    assert "depth" not in found.kwargs


def test_aliases_are_written_out() -> None:
    found = signature(Target("tests.spec.fakes:Reader"))
    assert found is not None
    assert found.kwargs["color_mode"].type_text == "Literal['RGB', 'GRAY']"


@pytest.mark.parametrize(
    "path", ["tests.spec.fakes:Nothing", "tests.spec.nothing:x", "nothing_at_all:x", "sys:exit", ""]
)
def test_what_cannot_be_read(path: str) -> None:
    assert signature(Target(path)) is None


def test_inheritance_imports_dataclasses_and_open_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "readable_pkg"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("from .deep.base import Base as Renamed\nAlso = Renamed\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "base.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Union\nSize = Union[int, 'list[int]']\n"
        "class Base:\n    def __init__(self, a, *, b: 'Size' = 1, **rest): ...\n"
        "@dataclass\nclass Data:\n    x: int\n    y: Size = 2\n"
    )
    (package / "own.py").write_text(
        "from . import Also\nfrom readable_pkg.deep.base import Data, Size\nimport torch.nn as nn\n"
        "class Own(Also, nn.Module):\n    pass\nclass More(Data):\n    z: Size | None = None\n"
        "class Round(Round): ...\nA = B\nB = A\n"
    )
    (package / "broken.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = signature(Target("readable_pkg.own:Own"))
    assert own is not None
    assert own.opened
    assert own.facts == ("a",)
    assert own.kwargs["b"].type_text == "Union[int, list[int]]"
    more = signature(Target("readable_pkg.own:More"))
    assert more is not None
    assert {n: p.required for n, p in more.kwargs.items()} == {"x": True, "y": False, "z": False}
    assert signature(Target("readable_pkg.own:Round")) is not None
    assert signature(Target("readable_pkg.own:A")) is None
    assert signature(Target("readable_pkg.broken:x")) is None
    assert "readable_pkg" not in sys.modules
    assert source_file("readable_pkg.deep") == package / "deep" / "__init__.py"
