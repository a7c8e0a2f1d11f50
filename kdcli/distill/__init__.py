"""One student and its teachers: taps, views, adapters, terms, the trainee. The table is torch-free."""

from __future__ import annotations

from kdcli.spec.tables import Target

ADAPTERS: dict[str, Target] = {
    "auto": Target("kdcli.distill.adapters:AutoAdapter"),
    "conv": Target("kdcli.distill.adapters:ConvAdapter"),
    "linear": Target("kdcli.distill.adapters:LinearAdapter"),
    "mlp": Target("kdcli.distill.adapters:MlpAdapter"),
    "resize": Target("kdcli.distill.adapters:ResizeAdapter"),
}
