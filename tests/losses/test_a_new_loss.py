"""A stranger's loss is one file and one line: NormKD, added to a copy of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kdcli

FILE = '''"""NormKD: each row of logits with a temperature of its own."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.inputs import check_logits
from kdcli.losses.parts.logits import tempered_kl_rows
from kdcli.losses.parts.inputs import full_precision
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import Positive


@full_precision
def normkd(student: Tensor, teacher: Tensor, *, T: Positive = 1.0) -> Tensor:
    """KL of softmaxes whose temperature is the row's standard deviation times T, times its square, in nats.

    student, teacher: logits [B, K]. A scalar, a mean over rows; raises RunError for other shapes.
    Source: "NormKD: Normalized Logits for Knowledge Distillation", arXiv:2308.00520.
    """
    check_logits(student, teacher, None, "normkd")
    s, t = (T * x.std(1, keepdim=True) + 1e-7 for x in (student, teacher))
    rows = tempered_kl_rows(student / s, teacher / t, 1.0)
    return row_mean(rows * t.squeeze(1).square(), None)
'''
LINE = '    "normkd": Loss("kdcli.losses.normkd:normkd", kind="logit", takes="logits", softened=True),\n'

CLI = "from kdcli.cli import main; main()"

TRAINS = """
from kdcli.records import Step
from kdcli.training.train import train
from kdcli.losses import LOSSES
from tests.distill.methods import mimic_of
from tests.distill.specs import TEACHER, spec_with
from tests.training.runs import run_of
from tests.losses.cases import make_case

parsed = spec_with({**mimic_of("normkd", TEACHER), "temperature": 3.0}, "trainer.log_freq=1")
with run_of(parsed) as run:
    term = run.trainee.mimickers["mimic_job0"].term_of("teacher0.loss")
    assert term.kwargs["T"] == 3.0 and term.loss_weight == 1.0, term.kwargs
    steps = [record for record in train(run) if isinstance(record, Step)]
assert len(steps) == 4 and all(step.losses["mimic_job0.teacher0.loss"] > 0 for step in steps), steps
case = make_case("normkd", requires_grad=True)
case.call().backward()
assert case.students[0].shape == (4, 5) and case.students[0].grad.any()
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package and of its tests, to which the loss has been added."""
    folder = tmp_path_factory.mktemp("extended")
    package = Path(kdcli.__file__).parent
    for one in (package, package.parent / "tests"):
        shutil.copytree(one, folder / one.name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    (folder / "kdcli" / "losses" / "normkd.py").write_text(FILE, encoding="utf-8")
    table = folder / "kdcli" / "losses" / "__init__.py"
    text = table.read_text(encoding="utf-8")
    last = text.rindex("}")
    table.write_text(text[:last] + LINE + text[last:], encoding="utf-8")
    return folder


def said(folder: Path, *command: str) -> str:
    """What a Python process in the folder prints; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_methods_knows_it(extended: Path) -> None:
    shown = said(extended, "-c", CLI, "methods", "normkd")
    assert "normkd · logit" in shown and "arXiv:2308.00520" in shown
    assert "loss: {type: normkd}" in shown and "mimic_name: [logits]" in shown
    assert [line.split()[0] for line in shown.splitlines() if "float" in line] == ["T", "loss_weight"]


@pytest.mark.slow
def test_the_schema_knows_it(extended: Path) -> None:
    assert '"normkd"' in said(extended, "-c", CLI, "schema")


@pytest.mark.slow
def test_it_trains_at_the_jobs_temperature_and_has_a_case(extended: Path) -> None:
    said(extended, "-c", TRAINS)


@pytest.mark.slow
def test_the_generic_tests_take_it_up(extended: Path) -> None:
    files = [f"tests/losses/{name}.py" for name in ("test_every_loss", "test_records", "parts/test_describe")]
    out = said(
        extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "normkd", *files
    )
    assert " passed" in out
