"""torchvision's image code, imported when the first image needs it.

The import takes as long as torch's own, and a spec is checked without it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any


@cache
def functional() -> Any:
    """The functions of torchvision.transforms.v2."""
    return import_module("torchvision.transforms.v2.functional")


@cache
def transforms() -> Any:
    """The classes of torchvision.transforms.v2."""
    return import_module("torchvision.transforms.v2")
