"""`python -m tests.golden`: record what this machine computes today."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.golden.measured import everything
from tests.golden.recorded import FILE, machine, write

with tempfile.TemporaryDirectory() as folder:
    write(everything(Path(folder)))
print(f"{FILE}: {machine()}")
