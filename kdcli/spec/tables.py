"""How a name in the spec maps to code: a 'module:attribute' string that nobody imports too early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """What one name of a table stands for.

    path: 'package.module:attribute'. preset: keyword arguments that the name itself fixes
    (resnet18 is ResNet with depth 18); the user cannot give them.
    """

    path: str
    preset: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import the module and return the attribute."""
        module, _, attribute = self.path.partition(":")
        return getattr(import_module(module), attribute)


Table = Mapping[str, Target]
