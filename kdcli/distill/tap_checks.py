"""Features that a loss can't read, or no adapter join: refused at their `mimic_name`, with what would do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.adapters import shown
from kdcli.distill.channels import ChannelTrace, image_size
from kdcli.distill.dry_run import restored_state
from kdcli.distill.layouts import layout_of
from kdcli.distill.mimickers.mimicker import MimicContext
from kdcli.distill.taps import Tap
from kdcli.distill.terms import TapPair, TapSide
from kdcli.errors import Findings, SpecError, SpecPath
from kdcli.losses import loss_of
from kdcli.losses.parts.inputs import places_in

POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d)


def check_taps(
    context: MimicContext,
    loss: str,
    students: Sequence[TapSide],
    teacher: str | None,
    teachers: Sequence[TapSide],
) -> None:
    """Refuse features that the loss does not take; raises SpecError KD451 at each `mimic_name`.

    loss: its type. students, teachers: the sides of its pairs, of the student and of `teacher`.
    """
    wrong = Findings()
    for whose, sides in ((None, students), (teacher, teachers)):
        net = context.student_module("") if whose is None else context.teacher_module(whose, "")
        part = ("student",) if whose is None else ("teachers", whose)
        for number, of_tap in groupby(sides, key=lambda side: side.number):
            with wrong.part():
                for side in of_tap:
                    _check(context, loss, whose, side, net, (*context.path, *part, "mimic_name", number))
    wrong.raise_errors()


def check_masked(
    context: MimicContext, students: Sequence[TapSide], teacher: str, teachers: Sequence[TapSide]
) -> None:
    """Raise SpecError KD451 at each `mimic_name` that gives no map where a method marks places of maps."""
    wrong = Findings()
    for whose, sides in ((None, students), (teacher, teachers)):
        part = ("student",) if whose is None else ("teachers", whose)
        for side in sides:
            if len(side.shape) == 4:
                continue
            with wrong.part():
                raise SpecError.at(
                    (*context.path, *part, "mimic_name", side.number),
                    "KD451",
                    f"`{context.job.mimic_ins_type}` marks places of maps [B, C, H, W]; `{side.name}` of "
                    f"{whose or 'the student'} is {shown(side.shape)}",
                    f"{context.nearest_map(whose, side.tap)}, as the neck of a detector does",
                )
    wrong.raise_errors()


def known_layouts(
    context: MimicContext, students: Sequence[TapSide], teacher: str | None, teachers: Sequence[TapSide]
) -> None:
    """Raise SpecError KD425 at each `mimic_name` that gives four axes of which the channels' isn't known."""
    wrong = Findings()
    for whose, sides in ((None, students), (teacher, teachers)):
        part = ("student",) if whose is None else ("teachers", whose)
        for side in sides:
            if side.layout.kind != "unknown" or len(side.shape) != 4:
                continue
            with wrong.part():
                _, one, two, three = side.shape
                raise SpecError.at(
                    (*context.path, *part, "mimic_name", side.number),
                    "KD425",
                    f"`{side.name}` of {whose or 'the student'} is {shown(side.shape)}, and which axis holds its "
                    f"channels isn't known: {one} channels first with a map of {two}x{three}, {three} channels last "
                    f"with one of {one}x{two}, or it is no map at all (windows, heads of an attention)",
                    f"{context.nearest_map(whose, side.tap)}, or, of a map, say `layout: {{channels: last}}` "
                    "(or `first`) beside the `mimic_name`",
                )
    wrong.raise_errors()


def candidates(side: TapSide, whose: str) -> str | None:
    """The layouts that tokens whose layout isn't known may have, in words, and how to say one; None for others."""
    if side.layout.kind != "tokens" or side.layout.in_grid:
        return None
    found = [
        (prefix, (rows, patches // rows))
        for prefix in (0, 1, 2, 5)
        if (patches := int(side.shape[1]) - prefix) > 3
        for rows in range(2, math.isqrt(patches) + 1)
        if patches % rows == 0 and patches // rows <= 2 * rows
    ]
    shown_ones = [f"{prefix}+{rows}x{columns}" for prefix, (rows, columns) in found[:4]]
    first = found[0] if found else (1, (14, 14))
    return (
        f"`{side.name}` of {whose} has {side.shape[1]} tokens whose layout isn't known"
        + (f" ({', '.join(shown_ones)}?)" if shown_ones else "")
        + f": say it beside its `mimic_name`, as in `layout: {{prefix: {first[0]}, grid: {list(first[1])}}}`"
    )


def joinable(context: MimicContext, teacher: str, pair: TapPair) -> str:
    """The help where no adapter joins two features: what to say of tokens, or layers whose features can be joined."""
    assert pair.teacher is not None
    unknown = [candidates(pair.student, "the student"), candidates(pair.teacher, teacher)]
    lines = [line for line in unknown if line is not None]
    if lines and min(places_in(side.shape) for side in (pair.student, pair.teacher)) > 1:
        return "\n".join(lines)
    sides = [("the student", context.student_module("")), (teacher, context.teacher_module(teacher, ""))]
    linears = [(whose, _last(net, (nn.Linear,))) for whose, net in sides]
    vectors = ", ".join(f"`{linear}:in` of {whose}" for whose, linear in linears if linear is not None)
    return (
        "name layers that give maps in both networks (`kdcli inspect-features` lists them), or vectors in both"
        + (f": {vectors}" if vectors else "")
    )


def _check(
    context: MimicContext, loss: str, teacher: str | None, side: TapSide, net: nn.Module, path: SpecPath
) -> None:
    whose = "the student" if teacher is None else teacher
    takes, tap, shape = loss_of(loss).takes, side.name, side.shape
    kind = "map" if side.form == "grid" else side.layout.kind
    tapped = f"`{tap}` of {whose} is {shown(shape)}"
    if takes == "logits" and kind not in ("logits", "vector"):
        raise SpecError.at(path, "KD451", f"`{loss}` compares logits [B, K]; {tapped}", "name `logits`")
    if takes == "vector" and len(shape) > 2 and shape[1:].numel() != shape[1]:
        raise SpecError.at(
            path, "KD451", f"`{loss}` takes a pooled vector [B, D]; {tapped}", _pooled_vector(net, side)
        )
    if takes == "map" and kind != "map":
        help = candidates(side, whose) or _last_map(net)
        raise SpecError.at(path, "KD451", f"`{loss}` takes maps [B, C, H, W]; {tapped}", help)
    if takes == "tokens" and kind != "tokens":
        raise SpecError.at(
            path, "KD451", f"`{loss}` takes tokens [B, N, D]; {tapped}", "name a block of a transformer"
        )
    if loss_of(loss).before_relu:
        relu = context.maker(teacher, side.tap, (nn.ReLU, nn.ReLU6, nn.LeakyReLU))
        if relu is not None:
            raise SpecError.at(
                path,
                "KD451",
                f"`{loss}` takes what goes into a ReLU; `{tap}` of {whose} is what comes out of one",
                f"name `{Tap.parse(relu).path}:in{relu.removeprefix(Tap.parse(relu).path)}`",
            )


def _pooled_vector(net: nn.Module, side: TapSide) -> str:
    if side.layout.class_token and not Tap.parse(side.tap).part:
        return f"name its class token: `{side.name}:class`"
    linear = _last(net, (nn.Linear,))
    if linear is not None:
        return f"name what goes into the classifier: `{linear}:in`"
    pool = _last(net, POOLS)
    return "name a layer after pooling" + (f": `{pool}`" if pool is not None else "")


def _last_map(net: nn.Module) -> str:
    pool = _last(net, POOLS)
    if pool is not None:
        return f"name a layer before pooling; the last map is `{pool}:in`"
    conv = _last(net, (nn.Conv2d,))
    return "name a convolutional layer" + (f", such as `{conv}`" if conv is not None else "")


def _last(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """The path of the network's last module of these kinds, in order of definition; None without one."""
    names = [name for name, module in net.named_modules() if isinstance(module, kinds)]
    return names[-1] if names else None


def nearest_map(net: nn.Module, batch: Mapping[str, Any], tap_text: str) -> str:
    """A help line: the next layer behind a tap that gives a map, else the last one before it."""
    given: list[tuple[str, Any]] = []
    tap = Tap.parse(tap_text).in_network(net)
    ends: dict[str, int] = {}
    with ExitStack() as stack, torch.no_grad(), restored_state(net):
        trace = stack.enter_context(ChannelTrace())
        for name, module in net.named_modules():

            def note(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                ends[name] = len(given)
                given.append((name, output))

            stack.callback(module.register_forward_hook(note).remove)
        net.eval()(batch)
    size, runs = image_size(batch), Counter(name for name, _ in given)
    maps = [
        (number, name, output)
        for number, (name, output) in enumerate(given)
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1
        if "." in name and runs[name] == 1 and layout_of(output, None, trace, size).kind == "map"
    ]
    if not maps:
        return "no layer of this network gives a map: name a vector, such as what goes into its classifier"
    behind = (found for found in maps if found[0] > ends.get(tap.path, len(given)))
    _, name, output = next(behind, maps[-1])
    return f"name a layer that gives a map; the nearest is `{name}`, {shown(output.shape)}"
