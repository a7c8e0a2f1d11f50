"""The public names: what a plugin or a script may import. A change here is a line in the changelog."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from kdcli import errors

PUBLIC = {
    # What a script calls, and what it gets; the version, as `kdcli --version` prints it.
    "kdcli": (
        *("train", "validate", "evaluate", "load_student"),
        *("Spec", "Data", "Result", "Measured"),
        *("KdError", "SpecError", "RunError", "UsageError", "Interrupted", "Diagnostic"),
        "__version__",
    ),
    # What kdcli raises for a user's mistake, and what a plugin raises to be told like kdcli's own.
    "kdcli.errors": ("KdError", "SpecError", "RunError", "UsageError", "Interrupted", "Diagnostic", "Span"),
    # The tables of names, and an entry of one.
    "kdcli.losses": ("LOSSES", "Loss"),
    "kdcli.losses.parts.stateful": ("StatefulLoss",),
    "kdcli.distill.mimickers": ("MIMICKERS",),
    "kdcli.models": ("MODULES",),
    "kdcli.data": ("DATASETS", "TRANSFORMS", "BATCH_FNS"),
    "kdcli.tasks": ("TASKS",),
    "kdcli.spec.tables": ("Target", "Loss", "Method", "OwnLoss", "MethodExample", "option", "TaskRecord"),
    # Ranges of an option, for annotations.
    "kdcli.spec.ranges": (
        "Range",
        "Positive",
        "Count",
        "Share",
        "ShareBelowOne",
        "NonNegative",
        "Temperature",
        "Weight",
    ),
    # A module of `net` that reads and gives named outputs.
    "kdcli.models.module": ("ViewModule",),
    # A mimic method, what it is built from, and what it is given.
    "kdcli.distill.mimickers.mimicker": ("Mimicker", "MimicContext", "Requirements", "StepInfo"),
    "kdcli.distill.mimickers.base": ("BaseMimicker",),
    "kdcli.distill.taps": ("View",),
    # What a dataset may return, and what is known of it.
    "kdcli.data.sources": ("ArrayImages", "ImageSource", "SampleSource", "BadSample"),
    "kdcli.data.facts": ("DataFacts",),
    "kdcli.data.transforms.pipeline": ("Transform",),
    # What a task answers.
    "kdcli.tasks.task": ("Task", "Meter", "Agreement", "Deployment"),
    "kdcli.tasks.metric": ("Metric",),
    # What follows a run.
    "kdcli.report.loggers.logger": ("Logger", "LoggedRun"),
}
"""By module, the names that stay, or whose change is announced; every other name is kdcli's own."""


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_name_is_there_and_says_what_it_is(module: str) -> None:
    for name in PUBLIC[module]:
        found = getattr(import_module(module), name)
        assert not isinstance(found, type) or (found.__doc__ or "").strip(), (module, name)


def test_kdcli_offers_its_public_names_and_no_others() -> None:
    import kdcli

    assert sorted(kdcli.__all__) == sorted(PUBLIC["kdcli"])
    assert set(kdcli.__all__) <= set(dir(kdcli))
    for name in kdcli.__all__:
        found = getattr(kdcli, name)
        assert name == "__version__" or getattr(errors, name, found) is found
        if callable(found):
            assert (found.__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = kdcli.trian  # type: ignore[attr-defined]


def test_a_type_checker_knows_what_each_name_is() -> None:
    """The imports for type checkers are of the very modules that the names come from when they are used."""
    import kdcli

    tree = ast.parse(Path(str(kdcli.__file__)).read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    said = {
        alias.name: node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert said == kdcli._MODULES


def test_every_error_of_a_user_is_public() -> None:
    raised = {found.__name__ for found in (errors.KdError, *errors.KdError.__subclasses__())}
    assert raised == {name for name in PUBLIC["kdcli.errors"] if name not in ("Diagnostic", "Span")}


def test_kdcli_itself_imports_nothing_and_has_types() -> None:
    """`import kdcli` is quick: no torch, no module of its own; type checkers find its annotations."""
    code = "import sys, kdcli; print(sorted(m for m in sys.modules if m.startswith(('torch', 'numpy', 'kdcli.'))))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.strip() == "[]"
    package = Path(str(import_module("kdcli").__file__)).parent
    assert (package / "py.typed").read_text() == ""
    assert (
        '[tool.hatch.build.targets.wheel]\npackages = ["kdcli"]'
        in (package.parent / "pyproject.toml").read_text()
    )
