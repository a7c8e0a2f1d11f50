"""The losses by name: what `type` under `mimic...cfgs` may say."""

from __future__ import annotations

from collections.abc import Mapping

from kdcli.spec.tables import Table, Target

LOGIT: Table = {
    "ce_loss": Target("kdcli.losses.ce:ce_loss"),
    "dist": Target("kdcli.losses.dist:dist"),
    "dkd": Target("kdcli.losses.dkd:dkd"),
    "gkd_loss": Target("kdcli.losses.kd:gkd_loss"),
    "kd_loss": Target("kdcli.losses.kd:kd_loss"),
    "logit_mse": Target("kdcli.losses.logit_mse:logit_mse"),
    "mlkd": Target("kdcli.losses.mlkd:mlkd"),
    "nkd": Target("kdcli.losses.nkd:nkd"),
    "rld": Target("kdcli.losses.rld:rld"),
    "tfkd_self": Target("kdcli.losses.tfkd:tfkd_self"),
    "ttm": Target("kdcli.losses.ttm:ttm"),
    "wkd_l": Target("kdcli.losses.wkd_l:WassersteinLogit"),
    "wsld": Target("kdcli.losses.wsld:wsld"),
    "wttm": Target("kdcli.losses.ttm:wttm"),
}
"""Compare logits [B, K]."""

FEATURE: Table = {
    "ab": Target("kdcli.losses.ab:ActivationBoundaries"),
    "at": Target("kdcli.losses.at:attention_transfer"),
    "bce_loss": Target("kdcli.losses.bce:bce_loss"),
    "cat_kd": Target("kdcli.losses.cat_kd:ClassAttention"),
    "cwd": Target("kdcli.losses.cwd:channel_wise"),
    "fgd": Target("kdcli.losses.fgd:FocalGlobal"),
    "fitnet": Target("kdcli.losses.fitnet:FitNet"),
    "fsp": Target("kdcli.losses.fsp:solution_flow"),
    "ft": Target("kdcli.losses.ft:FactorTransfer"),
    "ft_paraphrase": Target("kdcli.losses.ft:FactorParaphrase"),
    "kl_loss": Target("kdcli.losses.kl:kl_loss"),
    "l2_loss": Target("kdcli.losses.l2:l2_loss"),
    "mgd": Target("kdcli.losses.mgd:MaskedGeneration"),
    "nst": Target("kdcli.losses.nst:neuron_selectivity"),
    "ofd": Target("kdcli.losses.ofd:FeatureOverhaul"),
    "pkd": Target("kdcli.losses.pkd:pearson"),
    "review": Target("kdcli.losses.review:KnowledgeReview"),
    "simkd": Target("kdcli.losses.simkd:SimKD"),
    "srd": Target("kdcli.losses.srd:SimpleRecipe"),
    "srrl": Target("kdcli.losses.srrl:SoftmaxRegression"),
    "vid": Target("kdcli.losses.vid:VariationalInformation"),
    "wkd_f": Target("kdcli.losses.wkd_f:WassersteinFeature"),
}
"""Compare one student feature with one teacher feature, or a list of them."""

RELATIONAL: Table = {
    "cc": Target("kdcli.losses.cc:CorrelationCongruence"),
    "crd": Target("kdcli.losses.crd:ContrastiveRepresentation"),
    "itrd": Target("kdcli.losses.itrd:InformationTheoretic"),
    "pkt": Target("kdcli.losses.pkt:probabilistic_transfer"),
    "rkd": Target("kdcli.losses.rkd:relational"),
    "sp": Target("kdcli.losses.sp:similarity_preserving"),
}
"""Compare how the samples of a batch relate."""

TEACHER_FREE: Table = {
    "tfkd_reg": Target("kdcli.losses.tfkd:tfkd_reg"),
    "uskd": Target("kdcli.losses.uskd:USKD"),
}
"""Need no teacher."""

LOSSES: Table = {**LOGIT, **FEATURE, **RELATIONAL, **TEACHER_FREE}

KINDS: Mapping[str, Table] = {
    "logit": LOGIT,
    "feature": FEATURE,
    "relational": RELATIONAL,
    "teacher-free": TEACHER_FREE,
}
"""What a loss compares, as `kdcli methods` says it."""

UNLIKE_SHAPES: frozenset[str] = frozenset({"at", "fsp", "ft_paraphrase", "nst", "pkd", "pkt", "rkd", "sp"})
"""Losses that are not made from shapes and yet take unlike features, without an adapter."""

TEMPERED: frozenset[str] = frozenset(
    {
        "bce_loss",
        "ce_loss",
        "cwd",
        "dist",
        "dkd",
        "gkd_loss",
        "kd_loss",
        "nkd",
        "rld",
        "srd",
        "tfkd_reg",
        "tfkd_self",
        "wkd_l",
        "wsld",
    }
)
"""Losses whose `T` softens a distribution: a job's `temperature` is theirs; not crd's, fgd's."""

LOGITS_ONLY: frozenset[str] = frozenset(LOGIT) - {"ce_loss", "gkd_loss", "kd_loss", "logit_mse"} | {
    "tfkd_reg"
}
"""Losses that take logits [B, K] and no map of them."""

POOLED: frozenset[str] = frozenset({"cc", "crd"})
"""Losses that embed a pooled vector: over a whole map the embedding would be as large as the network."""

MAPS: frozenset[str] = frozenset(
    {"cat_kd", "fgd", "fsp", "ft", "ft_paraphrase", "mgd", "ofd", "simkd", "wkd_f"}
)
"""Losses that take maps [B, C, H, W] and nothing else."""

PRE_ACTIVATIONS: frozenset[str] = frozenset({"ab", "ofd"})
"""Losses that take what goes into a ReLU, of both networks."""
