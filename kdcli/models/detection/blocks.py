"""From a nested `{type, kwargs}` block of a detection spec to the object it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from kdcli.errors import did_you_mean
from kdcli.spec.check.components import refuse_misfits, types_of
from kdcli.spec.form.up_types import FOREIGN_TYPES
from kdcli.spec.ranges import Range, Share

Made = TypeVar("Made")

Delta = Annotated[float, Range(at_least=-1000, at_most=1000)]
Deviation = Annotated[float, Range(more_than=0, at_most=1000)]
PoolSize = Annotated[int, Range(at_least=1, at_most=1024)]
SamplingRatio = Annotated[int, Range(at_least=0, at_most=64)]
Pixels = Annotated[float, Range(more_than=0, at_most=65536)]


def build_block(block: Any, where: str, choices: Mapping[str, Callable[..., Made]], /, **facts: Any) -> Made:
    """The object of a block; facts go to constructors that take them.

    where: the block's path, for messages. Raises ValueError on an unknown type or argument, and where an
    argument is missing.
    """
    if not isinstance(block, Mapping) or "type" not in block:
        raise ValueError(f"`{where}` is a mapping with a `type`")
    known_keys(block, where, ("type", "kwargs"))
    kind = block["type"]
    if kind not in choices:
        raise ValueError(_unknown(f"`{where}.type`", str(kind), list(choices)))
    given = block.get("kwargs") or {}
    parameters = inspect.signature(choices[kind]).parameters
    takes = {name for name in parameters if name not in facts}
    known_keys(given, f"{where}.kwargs", sorted(takes))
    refuse_misfits(given, types_of(choices[kind]), f"{where}.kwargs")
    passed = {name: value for name, value in facts.items() if name in parameters}
    missing = [
        name for name in takes if parameters[name].default is inspect.Parameter.empty and name not in given
    ]
    if missing:
        raise ValueError(f"`{where}` needs {', '.join(f'`{name}`' for name in sorted(missing))}")
    return choices[kind](**passed, **given)


def known_keys(block: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
    """Raises ValueError at the first key that is not known."""
    for key in block:
        if key not in known:
            raise ValueError(_unknown(f"a key of `{where}`", str(key), list(known)))


def needed(block: Mapping[str, Any], where: str, key: str) -> Any:
    """block[key]; raises ValueError where it is missing."""
    if key not in block:
        raise ValueError(f"`{where}` needs `{key}`")
    return block[key]


def nms_threshold(block: Any, where: str) -> float:
    """The IoU above which the weaker of two boxes goes, from `{type: naive, nms_iou_thresh}`."""
    if not isinstance(block, Mapping):
        raise ValueError(f"`{where}` is a mapping")
    known_keys(block, where, ("type", "nms_iou_thresh"))
    if block.get("type", "naive") != "naive":
        raise ValueError(f"`{where}.type` is naive, not `{block['type']}`")
    threshold = needed(block, where, "nms_iou_thresh")
    refuse_misfits({"nms_iou_thresh": threshold}, {"nms_iou_thresh": Share}, where)
    return float(threshold)


def means_and_stds(block: Any, where: str) -> tuple[list[float], list[float]]:
    """The numbers that deltas are normalised by, from `{means, stds}`."""
    if not isinstance(block, Mapping):
        raise ValueError(f"`{where}` is a mapping")
    known_keys(block, where, ("means", "stds"))
    means, stds = needed(block, where, "means"), needed(block, where, "stds")
    refuse_misfits(block, {"means": list[Delta], "stds": list[Deviation]}, where)
    if len(means) != 4 or len(stds) != 4 or min(stds) <= 0:
        raise ValueError(f"`{where}` holds four means and four positive stds")
    return [float(v) for v in means], [float(v) for v in stds]


def one_width(inplanes: int | Sequence[int]) -> int:
    """The channels of levels that are all of one width."""
    if isinstance(inplanes, int):
        return inplanes
    if len(set(inplanes)) != 1:
        raise ValueError(f"the levels before have different widths: {list(inplanes)}; put an FPN between")
    return int(inplanes[0])


def _unknown(what: str, word: str, known: list[str]) -> str:
    hint = FOREIGN_TYPES.get(word) or did_you_mean(word, known)
    return f"{what} can't be `{word}`" + (f"; {hint}" if hint else "")
