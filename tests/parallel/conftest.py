"""The fixtures of a run's tests: an own working directory, scenes, commands."""

from tests.training.conftest import folder, kdcli, scenes

__all__ = ["folder", "kdcli", "scenes"]
