"""The mimic methods by name; torch-free."""

from __future__ import annotations

from kdcli.spec.tables import Target

MIMICKERS: dict[str, Target] = {
    "base": Target("kdcli.distill.mimickers.base:BaseMimicker"),
    "SampleFeature": Target("kdcli.distill.mimickers.sample_feature:SampleFeatureMimicker"),
    "FRS": Target("kdcli.distill.mimickers.frs:FrsMimicker"),
    "DeFeat": Target("kdcli.distill.mimickers.defeat:DeFeatMimicker"),
    "FGD": Target("kdcli.distill.mimickers.fgd:FgdMimicker"),
    "Mutual": Target("kdcli.distill.mimickers.mutual:MutualMimicker"),
}
