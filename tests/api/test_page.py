"""The example of the page on Python runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdcli

PAGE = Path(str(kdcli.__file__)).parent / "pages" / "python.md"


def test_the_page_names_what_there_is() -> None:
    named = set(re.findall(r"kdcli\.(\w+)", PAGE.read_text()))
    assert named <= set(kdcli.__all__), named - set(kdcli.__all__)
    assert {"train", "validate", "evaluate", "load_student", "Spec", "Data"} <= named


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python own_objects\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "own_objects.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "own_objects.py"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "student best" in done.stdout and "run: runs/small" in done.stdout
    assert (tmp_path / "student.pth").exists() and (tmp_path / "runs/small/report.html").exists()


@pytest.mark.slow
def test_several_processes_share_a_dataset(tmp_path: Path) -> None:
    script = tmp_path / "several.py"
    script.write_text(
        "import sys\n"
        "import kdcli\n"
        "from torch.utils.data import DataLoader\n"
        "from tests.api.objects import Noisy, images, made, spec\n"
        "train = Noisy() if sys.argv[1] == 'items' else DataLoader(images(), batch_size=8)\n"
        "found = kdcli.train(spec(), student=made(), teachers=made(8, seed=1), data=(train, images(16)),\n"
        "                    quiet=True, report=False)\n"
        "has = True\n"
        "try: found.student\n"
        "except kdcli.RunError as error: has = 'KD878' not in str(error)\n"
        "print(f'rank {found.rank}: {has} {found.metrics[\"top1\"]}', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[2]), "OMP_NUM_THREADS": "1"}

    def started(kind: str) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run(
            [*launcher, str(script), kind], capture_output=True, text=True, cwd=tmp_path, env=environment
        )

    done = started("items")
    assert done.returncode == 0, done.stderr
    ranks = dict(re.findall(r"rank (\d): (\w+ [\d.]+)", done.stdout))
    assert ranks["0"].split()[0] == "True" and ranks["1"].split()[0] == "False"
    assert ranks["0"].split()[1] == ranks["1"].split()[1]
    assert "KD875" in started("loader").stderr
