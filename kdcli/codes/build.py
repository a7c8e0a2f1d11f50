"""Codes KD4xx: building networks, taps, adapters and losses."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

BUILD: dict[str, Explanation] = {
    "KD450": Explanation(
        "features of a shape that the loss does not take",
        "A loss takes logits, maps, tokens or vectors, most of them of one shape for both networks; "
        "`kdcli methods NAME` says which. Name another layer, or add `adapter: auto`.",
        "wrong: type: dkd on backbone.layer4\nright: type: dkd on logits",
    ),
    "KD495": Explanation(
        "a metric of one's own failed",
        "A method of the class that `evaluator.type` names raised an error, told with its file and line. What its"
        " methods get and give is `Metric` in kdcli/tasks/metric.py.",
        "right: sums() gives a vector of one length, also before the first batch",
    ),
}
