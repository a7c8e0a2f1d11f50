"""Whether a classifier's logits and the classes of the data fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.errors import Diagnostic, SpecPath
from kdcli.spec.schema import Spec


def logits_fit(
    spec: Spec, outputs: Mapping[str, Any], train: DataFacts, test: DataFacts
) -> Iterator[Diagnostic]:
    """KD543 where a side has no labels; KD419 where the logits and the classes are not as many.

    outputs: of the student, `logits` [B, K] among them. An error where a label would lie beyond the logits; too
    many logits are a warning. What is not known of the data is not compared.
    """
    for side, facts in (("train", train), ("test", test)):
        if facts.labelled is False:
            yield Diagnostic(
                code="KD543",
                message=f"the {'training' if side == 'train' else 'test'} data has no labels",
                help="a classifier's task loss and accuracy need `labels` [B] in each batch",
                path=("dataset", side, "dataset"),
            )
    logits = outputs.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return
    made = int(logits.shape[1])
    sides = [("training", train), ("test", test)]
    told = [(side, facts.num_classes) for side, facts in sides if facts.num_classes is not None]
    short = [(side, classes) for side, classes in told if made < classes]
    most = max((classes for _, classes in told), default=made)
    wide = [(side, classes) for side, classes in told if side == "training" and made > most]
    for side, classes in (short or wide)[:1]:
        yield Diagnostic(
            code="KD419",
            severity="error" if short else "warning",
            message=f"the student gives {made} logits, and the {side} data has {classes} classes",
            help=f"write `num_classes: {most}`",
            path=head_path(spec),
        )


def head_path(spec: Spec) -> SpecPath:
    """Where the student's number of classes stands, or its network where it stands nowhere."""
    where = [index for index, module in enumerate(spec.net) if "num_classes" in module.kwargs]
    return ("net", where[-1], "kwargs", "num_classes") if where else ("net",)
