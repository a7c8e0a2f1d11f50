"""`kdcli train`: start the processes of a run, or train in this one. `kdcli cache`: store teachers' outputs."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from kdcli.api.train import prove_and_warn, train_here
from kdcli.commands import located, read_checked, run_options
from kdcli.commands.option_fields import AUTO
from kdcli.commands.options import CacheOptions, TrainOptions
from kdcli.disk import expanded, is_file
from kdcli.errors import UsageError
from kdcli.failures import doing
from kdcli.parallel.interrupts import Interrupts, listening
from kdcli.parallel.launch import (
    continue_command,
    expose_gpus,
    follow_launcher,
    launch,
    plan_launch,
    started_again,
)
from kdcli.waiting import say

if TYPE_CHECKING:
    from kdcli.spec.parse import ParsedSpec
    from kdcli.training.run import RunOptions


def train(arguments: TrainOptions) -> None:
    """Run the whole command `kdcli train`. Raises KdError, and Interrupted for a signal."""
    from kdcli.report.loggers.logger import check_loggers

    follow_launcher()
    expose_gpus(arguments.gpus)
    with listening() as interrupts:
        parsed = read_checked(arguments.spec, arguments.changes, arguments.plugins)
        with located(parsed):
            check_loggers(parsed.spec.trainer.loggers, arguments.plugins)
        plan = plan_launch(
            gpus=arguments.gpus,
            device=arguments.device or parsed.spec.runtime.device,
            nproc=arguments.nproc,
            nnodes=arguments.nnodes,
            node_rank=arguments.node_rank,
            rdzv_endpoint=arguments.rdzv_endpoint,
            max_restarts=arguments.max_restarts,
        )
        if plan is None:
            run_here(arguments, parsed, interrupts)
            return
        if arguments.spec == "-" or not is_file(arguments.spec):
            whence = "standard input" if arguments.spec == "-" else "a pipe"
            raise UsageError.of(f"a spec from {whence} can't be given to several processes", "use a file")
        prove_for_workers(arguments, parsed, plan.processes * plan.nnodes, one_machine=plan.nnodes == 1)
    launch(plan, arguments.for_worker(), again=arguments.again())


def options_of(arguments: TrainOptions, parsed: ParsedSpec, *, again: bool) -> RunOptions:
    """RunOptions of the command line. again: the launcher has restarted the processes after one died."""

    resume = arguments.resume
    return run_options(
        arguments,
        parsed,
        overwrite=arguments.overwrite and not again,
        resume=again if resume is None else True if resume == AUTO else expanded(resume),
        restarted=again,
        again=continue_command() or arguments.again(),
        prove=arguments.check,
    )


def prove_for_workers(arguments: TrainOptions, parsed: ParsedSpec, count: int, *, one_machine: bool) -> None:
    """Prove the spec in the launching process, once for all that it starts; first that the run folder is free.

    count: how many processes are started. one_machine: else another machine's processes may have claimed the folder
    for this run already.
    """
    if not arguments.check:
        return
    import torch

    from kdcli.check.proof import LAUNCHER_PROVED
    from kdcli.parallel.distributed import Processes
    from kdcli.training.build import claimed_folder

    processes = Processes(device=torch.device("cpu"))
    options = options_of(arguments, parsed, again=False)
    with claimed_folder(parsed, options, processes, say) if one_machine else nullcontext():
        prove_and_warn(parsed, options, processes, count)
    os.environ[LAUNCHER_PROVED] = "1"


def run_here(arguments: TrainOptions, parsed: ParsedSpec, interrupts: Interrupts) -> None:
    """Train in this process, alone or as one of several."""
    from kdcli.commands.baseline import baseline_of

    train_here(
        parsed,
        options_of(arguments, parsed, again=started_again()),
        interrupts,
        device="cuda" if arguments.gpus is not None else arguments.device,
        facts=facts_of(parsed, arguments),
        quiet=arguments.quiet,
        report=arguments.report,
        named=[
            arguments.spec,
            *arguments.changes,
            *(word for package in arguments.plugins for word in ("--plugin", package)),
        ],
        baseline=baseline_of(arguments.baseline, parsed),
        beside=arguments.baseline,
    )


def facts_of(parsed: ParsedSpec, arguments: TrainOptions | CacheOptions) -> dict[str, object]:
    """What every process of one run must have been given alike: the spec as it was read, and options."""
    from kdcli.spec.parse import resolved_data

    names = ("resume", "overwrite", "allow_changed", "plugins", "profile", "check", "report")
    options = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return {"the spec": resolved_data(parsed.spec), "the command line": options}


def cache(options: CacheOptions) -> None:
    """`kdcli cache`: store the teachers' outputs that a spec caches, and print where they lie."""
    parsed = read_checked(options.spec, options.changes, options.plugins)
    from kdcli.parallel import distributed
    from kdcli.parallel.devices import oom_as_error
    from kdcli.report.console import write
    from kdcli.training.make_caches import make_caches

    with (
        located(parsed),
        oom_as_error(parsed.spec),
        distributed.processes(
            options.device or parsed.spec.runtime.device, facts=facts_of(parsed, options)
        ) as processes,
    ):
        with doing("caching the teachers"):
            for notice in make_caches(parsed, run_options(options, parsed), processes):
                level = "warning: " if notice.level == "warning" else ""
                write(f"{level}{notice.message}\n", sys.stderr)
