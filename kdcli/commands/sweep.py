"""`kdcli sweep`: trials of a spec with other values, each an ordinary run; the best one trained over several seeds."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.api.reading import tell
from kdcli.commands import located, read_checked, run_options
from kdcli.commands.option_fields import parameters
from kdcli.commands.options import SweepOptions
from kdcli.commands.sweep_runs import Halving, Listener, Outcome, train_quietly
from kdcli.disk import expanded, make_folder, write_whole
from kdcli.errors import Interrupted, KdError, RunError, UsageError
from kdcli.failures import doing, failure
from kdcli.parallel.interrupts import Interrupts, listening
from kdcli.spec.sweep import Space, Values, space_of

if TYPE_CHECKING:
    import optuna

    from kdcli.parallel.distributed import Processes
    from kdcli.report.sweep_results import Seeded
    from kdcli.spec.parse import ParsedSpec
    from kdcli.sweep.prepare import Measured, Trials
    from kdcli.sweep.study import Study, Trial

HOPELESS = 3
"""After so many trials that all failed the sweep stops."""

HELD_OUT = 0.1
"""The share that is held out where neither the command nor the spec says one."""

OUTSIDE = ("KD740",)
"""No fault of a trial's values: the disk is full. The sweep ends, and its trial is run again by the next command."""


def sweep(options: SweepOptions) -> int:
    """Run the whole command; returns its exit code. Raises KdError, and Interrupted for a signal."""
    from kdcli.parallel import distributed
    from kdcli.sweep.study import need_optuna

    need_optuna()
    with listening() as interrupts, _goes_on():
        parsed = read_checked(options.spec, options.changes, options.plugins)
        device = options.device or parsed.spec.runtime.device
        with distributed.processes(device, facts={}) as processes:
            if processes.world_size > 1:
                raise UsageError.of(
                    "a trial has one process", "start `kdcli sweep` once for each GPU: they share the trials"
                )
            _Sweep(options, parsed, processes, interrupts).run()
    return 0


class _Sweep:
    """One process of a sweep."""

    def __init__(
        self, options: SweepOptions, parsed: ParsedSpec, processes: Processes, interrupts: Interrupts
    ) -> None:
        from kdcli.reference.tables import tables
        from kdcli.training.build import run_root

        self.options, self.parsed = options, parsed
        self.processes, self.interrupts = processes, interrupts
        self.known = tables(options.plugins)
        root = run_root(parsed)
        self.folder = (
            root.with_name(f"{root.name}-sweep") if options.folder is None else expanded(options.folder)
        )
        share = options.hold_out
        if share is not None and not 0 < share < 1:
            raise UsageError.of(
                f"`--hold-out` is a share between 0 and 1, got {share:g}", "for example `--hold-out 0.2`"
            )
        self.share = share or parsed.spec.dataset.hold_out or HELD_OUT

    def run(self) -> None:
        """Prepare, run trials until all are done, train the best over seeds, show what came of it."""
        from kdcli.report.console import write

        trials, plan, facts, first = self.prepared()
        study = self.study(trials, plan, facts, first)
        try:
            self.say(self.cost(trials, study.limit, plan))
            self.run_trials(trials, study)
            ended = study.trials()
            if any(one.state == "running" for one in ended):
                self.say("the trials left are run by other processes; the last of them ends the sweep")
                return
            if study.best is None:
                raise self.hopeless(ended)
            seeded = self.seeds(trials, study) if self.options.seeds else ()
            if seeded is None:
                self.say("the seeds left are run by other processes; the last of them ends the sweep")
                return
            results = self.written(trials, study, plan, seeded)
            write(results)
        finally:
            study.close()

    def say(self, text: str) -> None:
        """A line for the user, unless `--quiet`."""
        from kdcli.report.console import write

        if not self.options.quiet and text:
            write(text.rstrip("\n") + "\n", sys.stderr)

    # before the first trial

    def prepared(self) -> tuple[Trials, Measured, dict[str, Any], Values | None]:
        """The trials to come, what was measured of them, what the storage compares, the values of the spec itself."""
        from kdcli.sweep.cost import require_one_stage
        from kdcli.sweep.prepare import (
            Measured,
            Trials,
            check_space,
            default_space,
            hash_of,
            measured,
            space_from,
            with_pairs,
            written_values,
        )
        from kdcli.sweep.study import recorded_facts, require_same

        make_folder(self.folder)
        with located(self.parsed), doing("preparing the sweep"):
            space = space_of(self.parsed)
            if space is not None:
                space = with_pairs(self.parsed, space, self.options.plugins)
            trials = Trials(
                parsed=self.parsed,
                space=space or Space(parameters=(), layers={}),
                losses=self.known.losses,
                own=(f"dataset.hold_out={self.share}",),
                cache=self.folder / "cache",
            )
            facts = {
                "spec": hash_of(trials.spec({})),
                "share held out": self.share,
                "seed of the sampler": self.options.sampler_seed,
                "length": self.options.equal,
                "way of halving": self.options.halving,
                "space": "default" if space is None else space.facts(),
            }
            require_same(self.folder, facts)
            known = recorded_facts(self.folder, "prepared")
            if self.options.equal == "cost":
                require_one_stage(self.parsed)
            options = self.run_options(trials.spec({}))
            if known is not None:
                plan = Measured(**known["measured"])
                if space is None:
                    space = space_from(self.parsed, known["space"])
            else:
                self.say("preparing the sweep: building the first trial")
                plan = measured(trials, {}, options, self.processes)
                space = space or default_space(self.parsed, plan.even, self.known.losses)
            trials = replace(trials, space=space, views=plan.views)
            if not space.parameters:
                raise RunError.of(
                    "KD837",
                    "this spec has no number that a sweep would change by default",
                    "say what to try: `sweep: {trainer.optimizer.kwargs.lr: [0.01, 0.1]}`",
                )
            if known is None:
                tell(list(check_space(trials, self.known, options.plugins)))
            first = written_values(trials)
        facts["prepared"] = {
            "space": space.facts(),
            "measured": {
                name: dict(value) if isinstance(value, Mapping) else value
                for name, value in ((name, getattr(plan, name)) for name in Measured.__slots__)
            },
        }
        return trials, plan, facts, first

    def run_options(self, parsed: ParsedSpec, **more: Any) -> Any:
        """RunOptions of this command for one run."""
        return run_options(self.options, parsed, **more)

    def study(self, trials: Trials, plan: Measured, facts: Mapping[str, Any], first: Values | None) -> Study:
        """The storage, made or opened."""
        from kdcli.sweep.study import Study

        return Study(
            self.folder,
            self.parsed.spec,
            trials.space,
            self.known.losses,
            limit=self.options.trials,
            total_steps=plan.steps,
            halves=self.options.halving,
            seed=self.options.sampler_seed,
            facts=facts,
            first=first,
            held=plan.held,
        )

    def cost(self, trials: Trials, limit: int, plan: Measured) -> str:
        """What will be tried, and what that takes."""
        from kdcli.report.sweep_results import cost_text

        return cost_text(
            trials.space,
            limit,
            plan,
            folder=self.folder,
            share=self.share,
            halving=self.options.halving,
            equal=self.options.equal,
            seeds=self.options.seeds,
            default=self.parsed.spec.sweep is None,
            teachers=len(self.parsed.spec.teachers) if self.parsed.spec.distils else 0,
        )

    # trials

    def run_trials(self, trials: Trials, study: Study) -> None:
        """Run trials until none is left for this process."""
        from kdcli.report.sweep_results import trial_line

        while True:
            with study.next() as taken:
                if taken is None:
                    return
                trial, handle = taken
                self.run_trial(trials, study, trial, handle)
            ended = study.trials()
            self.say(trial_line(next(one for one in ended if one.number == trial.number), study))
            over = [one for one in ended if one.state != "running"]
            if len(over) >= min(HOPELESS, study.limit) and all(one.state == "failed" for one in over):
                raise self.hopeless(over)

    def run_trial(self, trials: Trials, study: Study, trial: Trial, handle: optuna.trial.Trial) -> None:
        """One trial: an ordinary run, its evaluations told to the study; a failure is recorded and not raised."""
        from kdcli.sweep.prepare import TOO_LARGE

        twin = study.twin(trial)
        if twin is not None:
            said = {"metrics": dict(twin.metrics), "primary": twin.primary, "same_as": twin.number}
            study.tell(handle, twin.state, twin.value, **said)
            return
        if "stopped_at" in handle.user_attrs:  # decided, and ended before it was said
            study.tell(handle, "stopped", None)
            return
        root = self.folder / "trials" / f"{trial.number:03}"
        began = time.perf_counter()
        try:
            ratio = self.ratio(trials, study, trial.values)
            began = time.perf_counter()
            own = (*self.shorter(trials, trial.values, ratio), f"saver.save_dir={json.dumps(str(root))}")
            try:
                outcome = self.trained(
                    trials.spec(trial.values, *own), root, Halving(study, handle, self.interrupts)
                )
            except KdError as error:
                if trials.views is None or error.diagnostics[0].code not in TOO_LARGE:
                    raise
                parsed = replace(trials, views=None).spec(trial.values, *own)
                outcome = self.trained(parsed, root, Halving(study, handle, self.interrupts))
        except Exception as error:
            reason = _to_record(error)
            make_folder(root)
            write_whole(root / "error.txt", reason + "\n")
            study.tell(handle, "failed", None, error=reason, seconds=time.perf_counter() - began)
            return
        said = {
            "metrics": dict(outcome.metrics),
            "primary": outcome.primary,
            "steps": outcome.steps,
            "seconds": time.perf_counter() - began,
            "ratio": ratio,
        }
        if outcome.stopped:
            study.tell(handle, "stopped", None, **said)
        elif outcome.lack is not None:
            study.tell(handle, "failed", None, **said, error=outcome.lack)
        else:
            study.tell(handle, "complete", outcome.value, **said)

    def ratio(self, trials: Trials, study: Study, values: Values) -> float | None:
        """With `--equal cost`, the cost of a step beside the student's alone: measured once for what is built alike."""
        if self.options.equal == "steps" or not self.parsed.spec.distils:
            return None
        from filelock import FileLock

        from kdcli.sweep.cost import cost_ratio
        from kdcli.sweep.prepare import built_key

        key = f"cost of {built_key(values, trials.space)}"
        with FileLock(self.folder / "measure.lock"):
            known = study.noted(key)
            if known is None:
                options = self.run_options(trials.spec(values))
                known = cost_ratio(trials, values, options, self.processes, self.interrupts)
                study.note(key, known)
                self.say(f"a step costs {known:.2f} times one of the student alone")
        return float(known)

    def shorter(self, trials: Trials, values: Values, ratio: float | None) -> tuple[str, ...]:
        """Assignments that make a run as much shorter as its steps cost more."""
        from kdcli.sweep.cost import shortened

        return () if ratio is None else shortened(trials.final(values), ratio)

    def trained(self, parsed: ParsedSpec, root: Path, listener: Listener) -> Outcome:
        """Train one run, from its newest checkpoint where it has begun; its last metrics."""
        return train_quietly(
            parsed,
            root,
            listener,
            options=lambda **more: self.run_options(parsed, **more),
            processes=self.processes,
            interrupts=self.interrupts,
            alone=self.folder / "cache.lock",
        )

    def hopeless(self, ended: Sequence[Trial]) -> RunError:
        """The error of a sweep in which no trial was trained to its end."""
        failed = [one for one in ended if one.state == "failed"]
        last = failed[-1] if failed else ended[-1]
        if len(failed) < len(ended):
            return RunError.of(
                "KD838",
                f"no trial was trained to its end: {len(failed)} failed, {len(ended) - len(failed)} were stopped as"
                f" they lay behind; the last that failed: {last.error or 'none'}",
                f"try more of them, `--trials {2 * len(ended)}`; or sweep in another folder, `--dir`, with "
                "`--no-halving`",
            )
        return RunError.of(
            "KD838",
            f"all {len(ended)} trials failed; the last one: {last.error}",
            f"look at {self.folder / 'trials' / f'{last.number:03}'} (train.log, error.txt), mend the spec and sweep "
            "in another folder, `--dir`",
        )

    # the best one

    def seeds(self, trials: Trials, study: Study) -> tuple[Seeded, ...] | None:
        """The best values, and the spec as it is written, trained on all training data over seeds and tested.

        None where another process is at the last of them.
        """
        from kdcli.report.sweep_results import Seeded
        from kdcli.training.claim import claim

        best = study.best
        assert best is not None
        written = study.noted("written values")
        rows: list[tuple[str, Values | None]] = [("best", best.values)]
        if written is None or study.counted(written) != dict(best.values):
            rows.append(("as written", None))
        base = self.parsed.spec.runtime.random_seed
        missing = False

        def key_of(seed: int, name: str, values: Values | None) -> str:
            return f"seed {seed}, {name}, trial {best.number if values is not None else '-'}"

        for number in range(self.options.seeds):
            for name, values in rows:
                key = key_of(base + number, name, values)
                if study.noted(key) is not None:
                    continue
                root = self.folder / "seeds" / f"{name.replace(' ', '_')}-{base + number}"
                if values is not None:
                    root = root.with_name(f"trial_{best.number:03}-{base + number}")
                with ExitStack() as stack:
                    try:
                        stack.enter_context(claim(self.folder / "owners" / root.name))
                    except RunError:
                        missing = True
                        continue
                    if study.noted(key) is not None:
                        continue
                    of_run = values if values is not None else written or {}
                    own = self.shorter(trials, of_run, self.ratio(trials, study, of_run))
                    parsed = self.final(trials, values, root, base + number, own)
                    self.say(f"seed {base + number}, {name}: {self.tested(study, key, parsed, root)}")
        if missing:
            return None
        found = []
        for name, values in rows:
            seeds = range(base, base + self.options.seeds)
            notes = {seed: study.noted(key_of(seed, name, values)) for seed in seeds}
            whole = {seed: one for seed, one in notes.items() if "error" not in one}
            found.append(
                Seeded(
                    name=name,
                    primary=next((one["primary"] for one in whole.values()), best.primary),
                    values=tuple(one["metrics"].get(one["primary"], math.nan) for one in whole.values()),
                    rising=tuple(one["value"] for one in whole.values()),
                    seeds=tuple(whole),
                    failed={seed: one["error"] for seed, one in notes.items() if "error" in one},
                )
            )
        return tuple(found)

    def tested(self, study: Study, key: str, parsed: ParsedSpec, root: Path) -> str:
        """Train one seed and note how it ended under the key; that in words. A failure is recorded as a trial's is."""
        try:
            outcome = self.trained(parsed, root, Listener())
            reason = outcome.lack
        except Exception as error:
            reason = _to_record(error)
        if reason is not None:
            study.note(key, {"error": reason})
            return f"failed: {reason}"
        noted = {"primary": outcome.primary, "value": outcome.value, "metrics": dict(outcome.metrics)}
        study.note(key, noted)
        return f"{outcome.primary} {outcome.metrics.get(outcome.primary, math.nan):.2f} on the test data"

    def final(
        self, trials: Trials, values: Values | None, root: Path, seed: int, lengths: tuple[str, ...]
    ) -> ParsedSpec:
        """The spec of one run on all training data, measured on the test data."""
        own = (*lengths, f"saver.save_dir={json.dumps(str(root))}", f"runtime.random_seed={seed}")
        return trials.final(values or {}, *own)

    def written(self, trials: Trials, study: Study, plan: Measured, seeded: Sequence[Seeded]) -> str:
        """Write best.yaml and sweep.html; the text for standard output."""
        from kdcli.report.sweep_page import sweep_page
        from kdcli.report.sweep_results import SweepResults, best_yaml, results_text
        from kdcli.sweep.prepare import assignments, with_whole_paths

        best = study.best
        assert best is not None
        lengths = self.shorter(trials, best.values, self.ratio(trials, study, best.values))
        held = self.parsed.spec.dataset.hold_out is not None
        own = [*assignments(trials, best.values), *lengths, *(["dataset.hold_out="] if held else [])]
        shared = [one for one in parameters(SweepOptions) if one.name in ("plugins", "device", "offline")]
        flags = [word for one in shared for word in one.words(getattr(self.options, one.name))]
        command = shlex.join(["kdcli", "train", self.options.spec, *self.options.changes, *own, *flags])
        results = SweepResults(
            name=Path(self.options.spec).stem,
            folder=self.folder,
            space=trials.space,
            trials=tuple(study.trials()),
            best=best,
            importance=study.importance(),
            seeded=tuple(seeded),
            plan=plan,
            share=self.share,
            command=command,
        )
        spec = with_whole_paths(trials.final(best.values, *lengths))
        results = replace(results, spec_text=best_yaml(results, spec.resolved_yaml()))
        write_whole(self.folder / "best.yaml", results.spec_text)
        write_whole(self.folder / "sweep.html", sweep_page(results))
        return results_text(results, self.options.format)


@contextmanager
def _goes_on() -> Iterator[None]:
    """A signal's message says how a sweep goes on: not as the run that was under way would."""
    try:
        yield
    except Interrupted as stop:
        help = "give the same command again: trials that have ended stay, the others go on from their last checkpoint"
        raise Interrupted(replace(stop.diagnostics[0], help=help), stop.signal_number) from stop


def _to_record(error: Exception) -> str:
    """Why a run failed, in a line; raises a signal, a fault of kdcli's own and what no run can help."""
    reason = None if isinstance(error, Interrupted) else _reason(error)
    if reason is None or reason.startswith(OUTSIDE):
        raise error
    return reason


def _reason(error: Exception) -> str | None:
    """Why a trial failed, in a line; None for what is kdcli's own fault."""
    if isinstance(error, KdError):
        first = error.diagnostics[0]
    else:
        found = failure(error, running=True)
        if found is None:
            return None
        first = found
    return f"{first.code}: {' '.join(first.message.split())}"
