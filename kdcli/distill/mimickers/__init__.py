"""The mimic methods by name; torch-free."""

from __future__ import annotations

from kdcli.spec.tables import Target

MIMICKERS: dict[str, Target] = {
    "base": Target("kdcli.distill.mimickers.base:BaseMimicker"),
}
