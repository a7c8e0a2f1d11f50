"""The package of tests/plugins/mine_kd, copied outside the tree; specs that use it; the command line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.conftest import folder, kdcli

__all__ = ["folder", "kdcli"]


@pytest.fixture(scope="session", autouse=True)
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that holds `mine_kd`, where Python looks for packages."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(Path(__file__).with_name("mine_kd"), home / "mine_kd")
    sys.path.insert(0, str(home))
    yield home
    sys.path.remove(str(home))
