"""Codes: what every diagnostic's code means, for `kdcli explain` and for SARIF rules."""

from __future__ import annotations

from kdcli.codes.build import BUILD
from kdcli.codes.cautions import CAUTIONS
from kdcli.codes.commands import COMMANDS
from kdcli.codes.explanation import Explanation
from kdcli.codes.files import FILES
from kdcli.codes.language import LANGUAGE
from kdcli.codes.python import PYTHON
from kdcli.codes.references import REFERENCES
from kdcli.codes.run import RUN
from kdcli.codes.syntax import SYNTAX

__all__ = ["CODES", "Explanation"]

CODES: dict[str, Explanation] = {
    **SYNTAX,
    **LANGUAGE,
    **REFERENCES,
    **BUILD,
    **FILES,
    **CAUTIONS,
    **RUN,
    **PYTHON,
    **COMMANDS,
}
