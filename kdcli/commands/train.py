"""`kdcli train`: launch where several processes are wanted, else run, show and write down."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.commands.arguments import AUTO
from kdcli.errors import UsageError
from kdcli.parallel.interrupts import Interrupts, listening
from kdcli.parallel.launch import (
    expose_gpus,
    follow_launcher,
    launch,
    plan_launch,
    started_again,
    told_by_launcher,
)

if TYPE_CHECKING:
    from kdcli.parallel.distributed import Processes
    from kdcli.spec.parse import ParsedSpec
    from kdcli.training.run import Run, RunOptions
    from kdcli.training.sides import Sides


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainArguments:
    """The command line of `kdcli train`. resume: `auto` for the newest valid checkpoint, else a path."""

    spec: str
    changes: Sequence[str] = ()
    gpus: str | None = None
    device: str | None = None
    nproc: int | None = None
    nnodes: int = 1
    node_rank: int | None = None
    rdzv_endpoint: str | None = None
    max_restarts: int = 0
    resume: str | None = None
    overwrite: bool = False
    allow_changed: Sequence[str] = ()
    plugins: Sequence[str] = ()
    quiet: bool = False
    report: bool = True
    profile: int | None = None
    check: bool = True

    def for_worker(self) -> list[str]:
        """The same command for one of several processes."""
        device = "cuda" if self.gpus is not None else self.device
        return [
            "train",
            self.spec,
            *(word for change in self.changes for word in ("--set", change)),
            *(("--device", device) if device is not None else ()),
            *(("--resume", self.resume) if self.resume is not None else ()),
            *(("--overwrite",) if self.overwrite else ()),
            *(word for key in self.allow_changed for word in ("--allow-changed", key)),
            *self._always(),
            *(("--profile", str(self.profile)) if self.profile is not None else ()),
        ]

    def again(self) -> str:
        """The command line that continues this run, for a shell."""
        places = {
            "--gpus": self.gpus,
            "--device": self.device,
            "--nproc": self.nproc,
            "--nnodes": self.nnodes if self.nnodes > 1 else None,
            "--node-rank": self.node_rank,
            "--rdzv-endpoint": self.rdzv_endpoint,
            "--max-restarts": self.max_restarts or None,
        }
        words = [word for name, value in places.items() if value is not None for word in (name, str(value))]
        return shlex.join(["kdcli", "train", self.spec, *self.changes, *words, *self._always(), "--resume"])

    def _always(self) -> list[str]:
        return [
            *(word for package in self.plugins for word in ("--plugin", package)),
            *(("--quiet",) if self.quiet else ()),
            *(() if self.report else ("--no-report",)),
            *(() if self.check else ("--no-check",)),
        ]


def train(arguments: TrainArguments) -> None:
    """The whole command; errors are raised, signals too."""
    from kdcli.commands import located
    from kdcli.commands.reading import read_checked
    from kdcli.report.loggers.loggers import check_loggers

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
        if arguments.spec == "-":
            raise UsageError.of(
                "a spec from standard input can't be given to several processes", "use a file"
            )
        prove_for_workers(arguments, parsed)
    launch(plan, arguments.for_worker(), again=arguments.again())


def options_of(arguments: TrainArguments, parsed: ParsedSpec, *, again: bool) -> RunOptions:
    """What the command line adds to the spec. again: the launcher has started the processes once more."""
    from kdcli.training.run import RunOptions

    resume = arguments.resume
    return RunOptions(
        device=arguments.device,
        overwrite=arguments.overwrite and not again,
        resume=again if resume is None else True if resume == AUTO else Path(resume),
        allow_changed=tuple(arguments.allow_changed),
        plugins=tuple(arguments.plugins),
        places=parsed.places,
        restarted=again,
        again=told_by_launcher() or arguments.again(),
        profile=arguments.profile,
        prove=arguments.check,
    )


def prove_for_workers(arguments: TrainArguments, parsed: ParsedSpec) -> None:
    """Prove the spec in the launching process, once for all that it starts."""
    if not arguments.check:
        return
    import torch

    from kdcli.check.proof import LAUNCHER_PROVED
    from kdcli.parallel.distributed import Processes

    here = Processes(device=torch.device("cpu"))
    prove_told(parsed, options_of(arguments, parsed, again=False), here)
    os.environ[LAUNCHER_PROVED] = "1"


def prove_told(parsed: ParsedSpec, options: RunOptions, here: Processes) -> tuple[RunOptions, Sides]:
    """The options of a run that has been proved, its warnings told, and the data that was opened for it."""
    from kdcli.check.proof import proved
    from kdcli.commands import located
    from kdcli.report.console import wants_colour, write
    from kdcli.report.diagnostics import render
    from kdcli.training.build import run_root
    from kdcli.training.reopen import with_own_files
    from kdcli.training.run_folder import RunFolder
    from kdcli.training.sides import Sides

    with located(parsed):
        options = with_own_files(options, parsed.spec, RunFolder(run_root(parsed)), here)
        sides = Sides(parsed.spec, options.places)
        options, warnings = proved(parsed, options, sides, here)
    if warnings and here.speaks:
        write(render(warnings, colour=wants_colour(sys.stderr)), sys.stderr)
    return options, sides


def run_here(arguments: TrainArguments, parsed: ParsedSpec, interrupts: Interrupts) -> None:
    """This process's part of the run: all of it, or as one of many."""
    from kdcli.commands import located
    from kdcli.commands.report import write_up
    from kdcli.parallel.devices import memory_told
    from kdcli.parallel.distributed import processes
    from kdcli.report.loggers.logger import LoggedRun
    from kdcli.report.loggers.loggers import Loggers
    from kdcli.report.recorder import Recorder
    from kdcli.spec.written import resolved_data
    from kdcli.training.build import built
    from kdcli.training.train import train as records_of

    options = options_of(arguments, parsed, again=started_again())
    device = "cuda" if arguments.gpus is not None else arguments.device or parsed.spec.runtime.device
    with ExitStack() as stack:
        stack.enter_context(located(parsed))
        stack.enter_context(memory_told(parsed.spec))
        here = stack.enter_context(processes(device))
        options, sides = prove_told(parsed, options, here)
        run = stack.enter_context(built(parsed, options, here, sides))
        if arguments.profile is not None:
            show_profile(run, arguments.profile, interrupts)
            return
        if not here.speaks:
            for _ in records_of(run, interrupts):
                pass
            return
        report = partial(write_up, parsed, run.options, run.folder.root, here.device)
        logged = LoggedRun(
            name=run.name,
            run_dir=run.folder.root,
            spec=resolved_data(parsed.spec),
            spec_text=parsed.resolved_yaml(),
        )
        with Recorder(
            metrics=run.folder.metrics,
            log=run.folder.log,
            spec=[
                arguments.spec,
                *arguments.changes,
                *(word for package in arguments.plugins for word in ("--plugin", package)),
            ],
            quiet=arguments.quiet,
            loggers=Loggers(parsed.spec.trainer.loggers, logged),
            write_up=report if arguments.report else None,
        ) as recorder:
            for record in records_of(run, interrupts):
                recorder.take(record)


def show_profile(run: Run, steps: int, interrupts: Interrupts) -> None:
    """Some steps under the profiler, as text on the screen and in the run folder."""
    from kdcli.report.console import write
    from kdcli.report.profile import profile_text
    from kdcli.training.profile import profile

    found = profile(run, steps, interrupts)
    if run.processes.speaks:
        text = profile_text(found, run.processes.world_size)
        found.trace.with_name("profile.txt").write_text(text, encoding="utf-8")
        write(text)
