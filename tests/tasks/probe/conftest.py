"""Every test of a probe runs in its own working directory, on one thread."""

from tests.training.conftest import folder as folder
from tests.training.conftest import kdcli as kdcli
