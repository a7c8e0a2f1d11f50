"""This layer is light: no torch, and fast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.spec.specs import BASE

PROGRAM = """
import sys, time
started = time.process_time()
from kdcli.spec.parse import read
from kdcli.spec.check.resolve import check_references
from kdcli.spec.tables import Tables
from kdcli.spec.networks import read_networks
parsed = read(sys.argv[1])
check_references(parsed, Tables())
print(time.process_time() - started, 'torch' in sys.modules, 'rich' in sys.modules)
"""


def test_a_long_spec_is_checked_quickly_and_without_torch(tmp_path: Path) -> None:
    many = "".join(f"  - {{name: m{i}, type: resnet18}}\n" for i in range(400))
    (tmp_path / "cfg.yaml").write_text(BASE.replace("net:\n", "net:\n" + many))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cfg.yaml")]
    seconds, torch, rich = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert (torch, rich) == ("False", "False")
    assert float(seconds) < 1.0, "0.25 s is the aim; a loaded machine is given four times that"
