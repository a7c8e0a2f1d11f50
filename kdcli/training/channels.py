"""Maps whose channels are their last axis, refused where they are tapped: kdcli reads maps as [B, C, H, W]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.adapters import shown
from kdcli.distill.channels import ChannelTrace, image_size
from kdcli.distill.dry_run import restored_state
from kdcli.distill.mimickers.mimicker import MimicContext
from kdcli.distill.taps import Tap, View, tensors_in
from kdcli.errors import Findings, SpecError, SpecPath


def refuse_channels_last(context: MimicContext, batch_of: Callable[[str | None], Mapping[str, Any]]) -> None:
    """Raise SpecError KD425 at each `mimic_name` of a job that names a map [B, H, W, C].

    batch_of: what a teacher runs on, or the student where the name is None.
    """
    job, wrong = context.job, Findings()
    sides: list[tuple[str | None, View, Sequence[str], SpecPath]] = [
        (None, context.student, job.student.mimic_name, (*context.path, "student", "mimic_name"))
    ]
    for name, teacher in job.teachers.items():
        path = (*context.path, "teachers", name, "mimic_name")
        sides.append((name, context.teachers[name], teacher.mimic_name, path))
    for whose, view, taps, path in sides:
        net = context.student_module("") if whose is None else context.teacher_module(whose, "")
        for index, tap in enumerate(taps):
            if tap not in view.channels_last:
                continue
            with wrong.part():
                found = ", ".join(shown(tensor.shape) for tensor in tensors_in(view.features[tap]))
                raise SpecError.at(
                    (*path, index),
                    "KD425",
                    f"`{tap}` of {whose or 'the student'} has its channels last: {found}; "
                    "kdcli reads maps as [B, C, H, W] and does not guess",
                    nearest_map(net, batch_of(whose), tap),
                )
    wrong.raise_errors()


def nearest_map(net: nn.Module, batch: Mapping[str, Any], tap_text: str) -> str:
    """A help line: the next layer behind a tap that gives a map [B, C, H, W], else the last one before it."""
    given: list[tuple[str, Any]] = []
    tap = Tap.parse(tap_text)
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
        if "." in name and runs[name] == 1 and not trace.channels_last(output, size)
    ]
    if not maps:
        return "no layer of this network gives [B, C, H, W]: name a vector, such as what goes into its classifier"
    behind = (found for found in maps if found[0] > ends.get(tap.path, len(given)))
    _, name, output = next(behind, maps[-1])
    return f"name a layer that gives [B, C, H, W]; the nearest is `{name}`, {shown(output.shape)}"
