"""The losses by name: what `type` under `mimic...cfgs` may say, and what is true of each; torch-free.

A new loss is a file of its own beside this one, and a line in the table.
"""

from __future__ import annotations

from functools import cache

from kdcli.spec.plugins import lookup, recorded
from kdcli.spec.tables import Loss

__all__ = ["LOSSES", "Loss", "loss_of"]

LOSSES: dict[str, Loss] = {
    # logit
    "ce_loss": Loss("kdcli.losses.ce:ce_loss", kind="logit", softened=True, mean_over_pairs=True),
    "dist": Loss("kdcli.losses.dist:dist", kind="logit", takes="logits", softened=True),
    "dkd": Loss("kdcli.losses.dkd:dkd", kind="logit", takes="logits", softened=True),
    "gkd_loss": Loss("kdcli.losses.kd:gkd_loss", kind="logit", softened=True, mean_over_pairs=True),
    "kd_loss": Loss("kdcli.losses.kd:kd_loss", kind="logit", softened=True, mean_over_pairs=True),
    "logit_mse": Loss("kdcli.losses.logit_mse:logit_mse", kind="logit"),
    "mlkd": Loss("kdcli.losses.mlkd:mlkd", kind="logit", takes="logits"),
    "nkd": Loss("kdcli.losses.nkd:nkd", kind="logit", takes="logits", softened=True),
    "rld": Loss("kdcli.losses.rld:rld", kind="logit", takes="logits", softened=True),
    "tfkd_self": Loss(
        "kdcli.losses.tfkd:tfkd_self", kind="logit", weight=0.95, takes="logits", softened=True
    ),
    "ttm": Loss("kdcli.losses.ttm:ttm", kind="logit", takes="logits"),
    "wkd_l": Loss(
        "kdcli.losses.wkd_l:WassersteinLogit", kind="logit", takes="logits", softened=True, prepares=True
    ),
    "wsld": Loss("kdcli.losses.wsld:wsld", kind="logit", weight=2.5, takes="logits", softened=True),
    "wttm": Loss("kdcli.losses.ttm:wttm", kind="logit", takes="logits"),
    # feature
    "ab": Loss(
        "kdcli.losses.ab:ActivationBoundaries",
        kind="feature",
        standardizes=False,
        before_relu=True,
        whole_list=True,
        example=("before ReLU",),
    ),
    "at": Loss(
        "kdcli.losses.at:attention_transfer",
        kind="feature",
        weight=1000.0,
        unlike_shapes=True,
        normalizes=True,
        constant=True,
        example=("stages",),
    ),
    "bce_loss": Loss(
        "kdcli.losses.bce:bce_loss",
        kind="feature",
        standardizes=False,
        softened=True,
        mean_over_pairs=True,
        divides_by_mask=True,
        example=("logits",),
        example_kwargs="{from_logits: true}",
    ),
    "cat_kd": Loss(
        "kdcli.losses.cat_kd:ClassAttention", kind="feature", standardizes=False, weight=400.0, takes="map"
    ),
    "cosine": Loss(
        "kdcli.losses.cosine:cosine", kind="feature", normalizes=True, adapter="mlp", constant=True
    ),
    "cwd": Loss("kdcli.losses.cwd:channel_wise", kind="feature", softened=True, constant=True),
    "fgd": Loss("kdcli.losses.fgd:FocalGlobal", kind="feature", takes="map"),
    "fitnet": Loss(
        "kdcli.losses.fitnet:FitNet", kind="feature", weight=100.0, constant=True, example=("middle stage",)
    ),
    "fsp": Loss(
        "kdcli.losses.fsp:solution_flow",
        kind="feature",
        weight=50.0,
        takes="map",
        unlike_shapes=True,
        whole_list=True,
        example=("stages",),
    ),
    "ft": Loss(
        "kdcli.losses.ft:FactorTransfer",
        kind="feature",
        weight=200.0,
        takes="map",
        takes_over="ft_paraphrase",
    ),
    "ft_paraphrase": Loss(
        "kdcli.losses.ft:FactorParaphrase",
        kind="feature",
        takes="map",
        unlike_shapes=True,
        trains_student=False,
    ),
    "kl_loss": Loss(
        "kdcli.losses.kl:kl_loss", kind="feature", standardizes=False, mean_over_pairs=True, rectifies=True
    ),
    "l2_loss": Loss(
        "kdcli.losses.l2:l2_loss",
        kind="feature",
        mean_over_pairs=True,
        divides_by_mask=True,
        normalizes="feat_norm",
        constant=True,
        example_kwargs="{feat_norm: false, batch_mean: false}",
    ),
    "mgd": Loss(
        "kdcli.losses.mgd:MaskedGeneration", kind="feature", weight=7e-05, takes="map", constant=True
    ),
    "nst": Loss(
        "kdcli.losses.nst:neuron_selectivity",
        kind="feature",
        weight=50.0,
        unlike_shapes=True,
        normalizes=True,
        example=("stages",),
    ),
    "ofd": Loss(
        "kdcli.losses.ofd:FeatureOverhaul",
        kind="feature",
        standardizes=False,
        weight=0.001,
        takes="map",
        before_relu=True,
        whole_list=True,
        example=("before ReLU",),
    ),
    "pkd": Loss("kdcli.losses.pkd:pearson", kind="feature", unlike_shapes=True),
    "prototypes": Loss("kdcli.losses.prototypes:Prototypes", kind="feature", normalizes=True, adapter="mlp"),
    "review": Loss(
        "kdcli.losses.review:KnowledgeReview",
        kind="feature",
        whole_list=True,
        example=("stages", "pooled vector"),
        teacher_example=("before ReLU", "pooled vector"),
    ),
    "simkd": Loss(
        "kdcli.losses.simkd:SimKD", kind="feature", standardizes=False, takes="map", replaces_end=True
    ),
    "srd": Loss("kdcli.losses.srd:SimpleRecipe", kind="feature", softened=True),
    "srrl": Loss("kdcli.losses.srrl:SoftmaxRegression", kind="feature", standardizes=False),
    "vid": Loss("kdcli.losses.vid:VariationalInformation", kind="feature", example=("stages",)),
    "wkd_f": Loss("kdcli.losses.wkd_f:WassersteinFeature", kind="feature", weight=0.02, takes="map"),
    # relational
    "cc": Loss(
        "kdcli.losses.cc:CorrelationCongruence",
        kind="relational",
        weight=0.02,
        takes="vector",
        example=("pooled vector",),
    ),
    "crd": Loss(
        "kdcli.losses.crd:ContrastiveRepresentation",
        kind="relational",
        weight=0.8,
        takes="vector",
        labels_unless=("negatives", "all"),
        example=("pooled vector",),
    ),
    "itrd": Loss("kdcli.losses.itrd:InformationTheoretic", kind="relational", example=("pooled vector",)),
    "pkt": Loss(
        "kdcli.losses.pkt:probabilistic_transfer",
        kind="relational",
        weight=30000.0,
        unlike_shapes=True,
        example=("pooled vector",),
    ),
    "rkd": Loss(
        "kdcli.losses.rkd:relational", kind="relational", unlike_shapes=True, example=("pooled vector",)
    ),
    "sp": Loss("kdcli.losses.sp:similarity_preserving", kind="relational", weight=3000.0, unlike_shapes=True),
    # teacher-free
    "tfkd_reg": Loss(
        "kdcli.losses.tfkd:tfkd_reg", kind="teacher-free", weight=0.1, takes="logits", softened=True
    ),
    "uskd": Loss("kdcli.losses.uskd:USKD", kind="teacher-free"),
}


def loss_of(name: str) -> Loss:
    """The record of a loss: the table's; of own code its `kdcli_record`, else what its signature shows."""
    record: Loss = lookup(LOSSES, name, code="KD306", what="loss", own=_own)
    return record


@cache
def _own(name: str) -> Loss:
    from kdcli.spec.check.signatures import derived_loss

    return recorded(name, Loss) or derived_loss(name)
