"""The baseline of a run: what its student reaches without a teacher, from a run or recorded with a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.api.spec import plain
from kdcli.errors import KdError, UsageError
from kdcli.records import Baseline
from kdcli.waiting import say

if TYPE_CHECKING:
    from kdcli.spec.parse import ParsedSpec


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `python -m tests.benchmarks.worth` has measured of a sample that trains a student alone.

    last: means over the seeds 1 to `seeds`; spread: the standard deviation of top1 over them.
    """

    sample: str
    last: Mapping[str, float]
    spread: float
    seeds: int


RECORDED = {
    "demo": Recorded(
        "demo_student",
        {"top1": 81.24, "top5": 97.29, "cross_entropy": 0.8257, "calibration_error": 10.77},
        2.02,
        10,
    ),
    "digits_kd": Recorded("digits_student", {"top1": 91.87}, 1.14, 5),
    "digits_feature": Recorded("digits_student", {"top1": 91.87}, 1.14, 5),
    "fashion_kd": Recorded("fashion_student", {"top1": 76.14}, 1.08, 5),
    "fashion_feature": Recorded("fashion_student", {"top1": 76.14}, 1.08, 5),
}
"""By sample, the student of it alone."""

_LIKE_THE_SAMPLE = (
    "runtime.random_seed",
    "runtime.device",
    "saver",
    "trainer.loggers",
    "trainer.keep_checkpoints",
)
"""What may differ from the sample: the figures are the same whatever these say."""


def baseline_of(run: Path | None, parsed: ParsedSpec) -> Baseline | None:
    """The baseline that `--baseline RUN` names, else the one recorded with the sample that the spec is; else None.

    Raises UsageError where the run has not been evaluated, RunError KD750 to KD753 where it is no run.
    """
    return recorded_baseline(parsed) if run is None else _of_run(run, parsed)


def _of_run(path: Path, parsed: ParsedSpec) -> Baseline:
    from kdcli.report.recorded_run import read_run
    from kdcli.report.run_identity import spec_differences
    from kdcli.spec.parse import resolved_data

    run = read_run(path)
    if not run.last:
        raise UsageError.of(
            f"`--baseline {path}` has not been evaluated yet", "let it run until its first evaluation"
        )
    unlike = spec_differences(run, plain(resolved_data(parsed.spec)))
    if unlike:
        say(f"this is not the same experiment as `--baseline {path}`: {'; '.join(map(str, unlike))}")
    return Baseline(last=run.last, best=run.best, source=str(path))


def recorded_baseline(parsed: ParsedSpec) -> Baseline | None:
    """What is recorded of the student alone where the spec is a sample, but for seed, device and folders; else None."""
    from kdcli.commands.samples import sample_specs
    from kdcli.spec.parse import read, resolved_data

    if parsed.spec.mimic is None or parsed.spec.dataset.train.dataset.type not in ("digits", "fashion_mnist"):
        return None
    own = _comparable(resolved_data(parsed.spec))
    try:
        samples = sample_specs()
        for name, one in RECORDED.items():
            if name in samples and _comparable(resolved_data(read(samples[name]).spec)) == own:
                return Baseline(
                    last=one.last,
                    source=f"recorded, not run here: sample {one.sample}, mean of {one.seeds} seeds, top1"
                    f" {one.last['top1']:.2f} ± {one.spread:.2f}",
                )
    except KdError:
        # Samples that can't be read here are no reason to stop somebody's training.
        return None
    return None


def _comparable(spec: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in spec.items()}
    for key in _LIKE_THE_SAMPLE:
        head, _, tail = key.partition(".")
        if not tail:
            result.pop(head, None)
        elif isinstance(result.get(head), dict):
            result[head].pop(tail, None)
    return result
