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
}
