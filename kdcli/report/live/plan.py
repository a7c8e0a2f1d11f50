"""Summary of what will be trained: networks, pairs, steps; shown by `validate` and when a training starts."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from kdcli.records import Plan
from kdcli.report.console import as_text, printable, table
from kdcli.report.quantities import MISSING, count, flops, rate


def plan_text(plan: Plan, *, colour: bool = False, width: int | None = None) -> str:
    """The plan's summary as text; nothing wraps where there is no width."""
    return as_text(plan_summary(plan), colour=colour, width=width)


def plan_summary(plan: Plan) -> RenderableType:
    """The plan's summary for a console: networks, pairs of layers, data, steps, learning rate."""
    parts: list[RenderableType] = [_headline(plan), Text(""), _networks(plan)]
    if plan.pairs:
        parts += [Text(""), _pairs(plan)]
    if plan.pulls:
        parts.append(Text("pull: how hard a term's gradient is on the student, to the task loss's 1"))
    parts += [Text(""), *map(Text, _schedule_lines(plan))]
    return Group(*parts)


def _schedule_lines(plan: Plan) -> list[str]:
    """A line each for data, steps, learning rate, and where a resumed run goes on."""
    global_batch = plan.batch_size * plan.processes
    batch = f"batch {plan.batch_size}"
    if plan.processes > 1:
        batch += f" x {plan.processes} processes = {global_batch}"
    images = "number of training images not known without the files" if plan.samples is None else ""
    lines = [
        f"data   {images or f'{plan.samples:,} training images'}, {batch}",
        f"steps  {_steps(plan)}",
        f"lr     {rate(plan.effective_lr)} effective",
    ]
    if plan.resumed_step and plan.total_steps is not None:
        lines.append(f"resume at step {plan.resumed_step:,} of {plan.total_steps:,}")
    return lines


def _steps(plan: Plan) -> str:
    if plan.total_steps is None:
        return "not known without the files: `validate --files` counts them"
    if not plan.steps_per_epoch:
        return f"{plan.total_steps:,}"
    epochs = plan.total_steps / plan.steps_per_epoch
    return f"{plan.total_steps:,} = {epochs:g} epochs x {plan.steps_per_epoch:,}"


def _headline(plan: Plan) -> Text:
    processes = f"{plan.processes} process{'' if plan.processes == 1 else 'es'}"
    return Text.assemble(
        (printable(plan.name), "bold"), f" · {plan.device} · {processes} · {plan.precision} · {plan.run_dir}"
    )


def _networks(plan: Plan) -> RenderableType:
    rows = [
        [network.name, count(network.parameters), flops(network.flops), network.runs_until or "whole"]
        for network in plan.networks
    ]
    return table(["network", ">parameters", ">FLOPs", "runs until"], rows)


def _pairs(plan: Plan) -> RenderableType:
    rows = [
        [
            pair.term,
            pair.student_layer,
            pair.student_shape,
            pair.adapter or MISSING,
            ": ".join(part for part in (pair.teacher, pair.teacher_layer) if part) or MISSING,
            pair.teacher_shape or MISSING,
            pair.loss,
            f"{pair.weight:g}",
            *([f"{plan.pulls[pair.term]:.2g}" if pair.term in plan.pulls else MISSING] if plan.pulls else []),
        ]
        for pair in plan.pairs
    ]
    columns = ["term", "student layer", "shape", "adapter", "teacher layer", "shape", "loss", ">weight"]
    return table([*columns, ">pull"] if plan.pulls else columns, rows)
