"""Training a spec in this process: what `kdcli train` and `kdcli.train` both do."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.api.objects import Data, objects_of, refuse_several, refuse_wrong
from kdcli.api.reading import checked, globals_kept, located, readable_errors, tell
from kdcli.api.result import Result
from kdcli.api.spec import SpecLike, Texts, listed, spec_of
from kdcli.disk import expanded, remove
from kdcli.errors import Interrupted, KdError, RunError
from kdcli.failures import doing, with_place
from kdcli.parallel.interrupts import Interrupts, listening
from kdcli.records import Baseline, Evaluation, Finished, Notice, Record
from kdcli.spec.in_memory import in_memory
from kdcli.waiting import say

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kdcli.parallel.distributed import Processes
    from kdcli.report.live.recorder import Recorder
    from kdcli.spec.parse import ParsedSpec
    from kdcli.training.run import Run, RunOptions
    from kdcli.training.sides import Sides


def train(
    spec: SpecLike,
    *,
    student: nn.Module | None = None,
    teachers: Mapping[str, nn.Module] | nn.Module | None = None,
    data: Data | Mapping[str, Any] | None = None,
    changes: Texts = (),
    resume: bool | str | Path = False,
    overwrite: bool = False,
    allow_changed: Texts = (),
    device: str | None = None,
    plugins: Texts = (),
    quiet: bool = False,
    report: bool = True,
    check: bool = True,
    offline: bool = False,
) -> Result:
    """Train the student of a spec, as `kdcli train` does: checked, guarded, into a run folder.

    spec: the path of a YAML file, a mapping in the spec's language, or a kdcli.Spec.
    student: an nn.Module in place of the spec's `net`. It takes images [B, C, H, W] and returns logits [B, K], or a
    mapping of named outputs; its layers are named `model.<path>` in `mimic_name` (or as the spec calls its one module).
    teachers: an nn.Module, or one for each name ({"teacher0": module}), in place of the spec's lists and weights.
    All are copied: your modules keep their weights, modes, hooks, devices and `requires_grad`. The student starts from
    the weights that it has.
    data: {"train": ..., "test": ...} with torch Datasets or DataLoaders, or a kdcli.Data, which also takes the names of
    the classes; in place of the spec's `dataset.<side>.dataset`.
    changes: `key.path=value`, one or several, as on the command line.
    resume: continue the run in the folder from its newest checkpoint, or from this one. Give the same objects again: a
    teacher's weights, the data's samples and the student's architecture are compared. It is exact, bit for bit, but
    for batches that are made in an order of their own: a notice says so.
    overwrite, allow_changed, device, plugins, report, check, offline: as the options of `kdcli train`. quiet: print
    warnings and the last line only. All that is printed goes to standard error.

    Returns a Result: the student with the weights of its best evaluation, in eval mode; metrics; the run folder.
    Raises SpecError where spec and objects are wrong, RunError where the run fails, UsageError for wrong arguments,
    each with `diagnostics` and `exit_code`; KeyboardInterrupt after Ctrl-C and Interrupted after another signal, once
    a checkpoint is saved. Random state, threads and the current CUDA device are put back in the end.

        student = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
        result = kdcli.train("cfg.yaml", student=student, teachers=teacher, data={"train": train, "test": test})
        result.student(images).argmax(1)
    """
    with readable_errors(), globals_kept(), listening(leaves=False) as interrupts:
        wanted = spec_of(spec, changes)
        objects = objects_of(wanted, student, teachers, data)
        with objects.used(), _as_keyboard_interrupt():
            return _train(
                lambda: checked(lambda: wanted.parsed(objects.changes), listed(plugins)),
                interrupts,
                _Options(
                    device=device,
                    overwrite=overwrite,
                    resume=resume,
                    allow_changed=listed(allow_changed),
                    plugins=listed(plugins),
                    quiet=quiet,
                    report=report,
                    check=check,
                    offline=offline,
                ),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """The arguments of `train` that are no objects."""

    device: str | None
    overwrite: bool
    resume: bool | str | Path
    allow_changed: tuple[str, ...]
    plugins: tuple[str, ...]
    quiet: bool
    report: bool
    check: bool
    offline: bool


def _train(read: Callable[[], ParsedSpec], interrupts: Interrupts, options: _Options) -> Result:
    from kdcli.models.fetching import go_offline
    from kdcli.report.live.live_screen import progress_of_bytes
    from kdcli.report.loggers.logger import check_loggers
    from kdcli.spec.parse import resolved_data
    from kdcli.training.run import RunOptions

    parsed = read()
    given = in_memory()
    with located(parsed):
        check_loggers(parsed.spec.trainer.loggers, options.plugins)
        refuse_wrong(parsed, given)
    if options.offline:
        go_offline()
    resume = options.resume
    run_options = RunOptions(
        device=options.device,
        overwrite=options.overwrite,
        resume=resume if isinstance(resume, bool) else expanded(resume),
        allow_changed=options.allow_changed,
        plugins=options.plugins,
        places=parsed.places,
        again="kdcli.train(..., resume=True)",
        prove=options.check,
        shown=progress_of_bytes,
    )
    facts = {"the spec": resolved_data(parsed.spec), "the arguments": repr(options)}
    trained = train_here(
        parsed,
        run_options,
        interrupts,
        facts=facts,
        quiet=options.quiet,
        report=options.report,
        then=None if not given else "kdcli.evaluate(run) with the same objects",
    )
    assert trained is not None
    return trained.result()


@dataclass(slots=True)
class Trained:
    """What a training has left: its last record, the evaluations of the student, and the run's own facts."""

    parsed: ParsedSpec
    options: RunOptions
    processes: Processes
    evaluations: list[Evaluation] = field(default_factory=list)
    finished: Finished | None = None

    def take(self, record: Record) -> None:
        """Note a record."""
        if isinstance(record, Evaluation) and record.network == "student":
            self.evaluations.append(record)
        elif isinstance(record, Finished):
            self.finished = record

    def result(self) -> Result:
        """The training as Python gets it: with the student's weights read from the run folder."""
        from kdcli.api.measure import student_in

        assert self.finished is not None
        student = None
        if self.processes.speaks:
            student = student_in(self.parsed, self.options, "best").to(self.processes.device)
        return Result.of(self.finished, tuple(self.evaluations), student, rank=self.processes.rank)


def train_here(
    parsed: ParsedSpec,
    options: RunOptions,
    interrupts: Interrupts,
    *,
    device: str | None = None,
    facts: Mapping[str, object],
    quiet: bool = False,
    report: bool = True,
    named: Sequence[str] | None = None,
    then: str | None = None,
    baseline: Baseline | None = None,
    beside: Path | None = None,
) -> Trained | None:
    """Train in this process, alone or as one of several; None where `options.profile` looks at some steps only.

    device: else that of the options, else the spec's. facts: what every process must have been given alike. named: how
    the user named the spec, for the command shown at the end, or then: what else is shown there. baseline: shown in the
    last table. beside: a run that the report is compared with. Raises KdError.
    """
    from kdcli.parallel import distributed
    from kdcli.parallel.devices import oom_as_error
    from kdcli.training.build import built, claimed_folder
    from kdcli.training.train import train as records_of

    device = device or options.device or parsed.spec.runtime.device
    with ExitStack() as stack:
        stack.enter_context(located(parsed))
        stack.enter_context(oom_as_error(parsed.spec))
        processes = stack.enter_context(distributed.processes(device, facts=facts))
        refuse_several(parsed, in_memory(), processes.world_size)
        # First of all: a proof that takes a while must not end in "another run is here".
        folder = stack.enter_context(claimed_folder(parsed, options, processes, say))
        options, sides = prove_and_warn(parsed, options, processes, count=not quiet)
        with doing("building the run"):
            run = stack.enter_context(built(parsed, options, processes, sides, folder))
        if options.profile is not None:
            show_profile(run, options.profile, interrupts)
            return None
        trained = Trained(parsed, run.options, processes)
        if not processes.speaks:
            for record in records_of(run, interrupts):
                trained.take(record)
            return trained
        written_up = partial(write_up, parsed, run.options, run.folder.root, processes.device, beside=beside)
        with recorder_of(
            parsed,
            run,
            spec=[str(run.folder.root)] if named is None else named,
            then=then,
            quiet=quiet,
            write_up=written_up if report else None,
            baseline=baseline,
        ) as recorder:
            for record in records_of(run, interrupts):
                trained.take(record)
                recorder.take(record)
        return trained


def recorder_of(parsed: ParsedSpec, run: Run, *, name: str | None = None, **shown: Any) -> Recorder:
    """What shows and stores a run's records, its loggers among them. name: what these call it, else `logged_name`.

    shown: what else `Recorder` takes.
    """
    from kdcli.report.live.recorder import Recorder
    from kdcli.report.loggers.background import Loggers
    from kdcli.report.loggers.logger import LoggedRun
    from kdcli.spec.parse import resolved_data

    folder = run.folder
    logged = LoggedRun(
        name=name or logged_name(run.name, folder.root),
        run_dir=folder.root,
        spec=resolved_data(parsed.spec),
        spec_text=parsed.resolved_yaml(),
    )
    loggers = Loggers(parsed.spec.trainer.loggers, logged, metrics=folder.metrics, again=run.options.again)
    return Recorder(metrics=folder.metrics, log=folder.log, loggers=loggers, **shown)


def logged_name(name: str, root: Path) -> str:
    """What loggers call a run: its name, and its folder's where that is another, so that runs of one spec differ."""
    return name if root.name == name else f"{name}/{root.name}"


def prove_and_warn(
    parsed: ParsedSpec,
    options: RunOptions,
    processes: Processes,
    started: int | None = None,
    *,
    count: bool = False,
) -> tuple[RunOptions, Sides]:
    """Prove the spec and print warnings; returns the options with the proof, and the data opened for it.

    started: how many processes will train, where these are not the ones. count: count FLOPs, which are shown.
    """
    from kdcli.check.proof import proved
    from kdcli.training.build import naming, run_root
    from kdcli.training.run_folder import RunFolder, with_own_files
    from kdcli.training.sides import Sides

    with located(parsed):
        with naming(parsed, "save_dir"):
            options = with_own_files(options, parsed.spec, RunFolder(run_root(parsed)), processes)
        with doing("looking at the spec's files and networks"):
            sides = Sides(parsed.spec, options.places, plugins=options.plugins)
            options, warnings = proved(parsed, options, sides, processes, started, count=count)
    if processes.speaks:
        tell(warnings)
    return options, sides


def show_profile(run: Run, steps: int, interrupts: Interrupts) -> None:
    """Profile some steps; print the result, and write it to profile.txt in the run folder."""
    from kdcli.disk import write_whole
    from kdcli.report.analysis_text import profile_text
    from kdcli.report.console import write
    from kdcli.training.profile import profile

    with doing("profiling"):
        profiled = profile(run, steps, interrupts)
    if run.processes.speaks:
        text = profile_text(profiled, run.processes.world_size)
        write_whole(profiled.trace.with_name("profile.txt"), text)
        write(text)


def write_up(
    parsed: ParsedSpec,
    options: RunOptions,
    root: Path,
    device: torch.device,
    drawn: bool,
    beside: Path | None = None,
) -> tuple[list[Notice], Mapping[str, bytes]]:
    """Write report.html of a run that has just finished; returns notices, and pictures if `drawn`. Never raises.

    beside: a run to compare it with; without it where the two can't be compared.
    """
    from kdcli.analysis.collected import write_report_data
    from kdcli.report.charts import need_matplotlib
    from kdcli.report.report_page import report_pictures, write_report

    try:
        need_matplotlib()
    except RunError as missing:
        help = missing.diagnostics[0].help
        return [Notice(message=f"no report.html: matplotlib is not installed; {help}")], {}
    notices: list[Notice] = []
    pictures: Mapping[str, bytes] = {}
    try:
        _, notices = write_report_data(parsed, options, device)
    except Exception as error:
        with suppress(RunError):
            remove(root / "report_data.json")
        message = f"the report shows curves alone: {_reason(error)}"
        notices = [Notice(message=message, level="warning")]
    try:
        try:
            page = write_report(root, beside)
        except RunError as error:
            if beside is None:
                raise
            message = f"the report is without the baseline: {_reason(error)}"
            notices = [*notices, Notice(message=message, level="warning")]
            page = write_report(root)
        pictures = report_pictures(root) if drawn else {}
    except Exception as error:
        return [*notices, Notice(message=f"no report.html: {_reason(error)}", level="warning")], {}
    return [*notices, Notice(message=f"report: {page}")], pictures


def _reason(error: Exception) -> str:
    return error.diagnostics[0].message if isinstance(error, KdError) else with_place(error)


@contextmanager
def _as_keyboard_interrupt() -> Iterator[None]:
    """Ctrl-C as Python knows it, once everything is saved; other signals stay Interrupted."""
    try:
        yield
    except Interrupted as error:
        if error.signal_number != signal.SIGINT:
            raise
        found = error.diagnostics[0]
        raise KeyboardInterrupt(f"{found.message}; {found.help}") from None
