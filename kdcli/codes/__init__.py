"""Codes: what every diagnostic's code means, for `kdcli explain` and for SARIF rules."""

from __future__ import annotations

from kdcli.codes.build import BUILD
from kdcli.codes.cache import CACHE
from kdcli.codes.cautions import CAUTIONS
from kdcli.codes.detection import DETECTION
from kdcli.codes.distillation import DISTILLATION
from kdcli.codes.explanation import Explanation
from kdcli.codes.files import FILES
from kdcli.codes.language import LANGUAGE
from kdcli.codes.networks import NETWORKS
from kdcli.codes.references import REFERENCES
from kdcli.codes.run import RUN
from kdcli.codes.syntax import SYNTAX
from kdcli.codes.weights import WEIGHTS

__all__ = ["CODES", "Explanation"]

CODES: dict[str, Explanation] = {
    **SYNTAX,
    **LANGUAGE,
    **REFERENCES,
    **NETWORKS,
    **BUILD,
    **DISTILLATION,
    **DETECTION,
    **FILES,
    **WEIGHTS,
    **CACHE,
    **CAUTIONS,
    **RUN,
}
