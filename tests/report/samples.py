"""Records and findings the report tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdcli.errors import Diagnostic, Span
from kdcli.records import Evaluation, Finished, NetworkFacts, Notice, Pair, Plan, Record, Saved, Step

RUN = Path("runs/digits_kd")


def span(excerpt: str, marked: str, *, line: int = 31, source: str = "cfg.yaml", **kwargs: Span) -> Span:
    """The span of `marked` in `excerpt`."""
    start = excerpt.index(marked)
    return Span(
        source=source,
        line=line,
        column=start + 1,
        end_column=start + 1 + len(marked),
        excerpt=excerpt,
        **kwargs,
    )


MISSPELT = Diagnostic(
    code="KD203",
    message="unknown key `weigth`",
    help="did you mean `weight`?",
    span=span("        loss: {weigth: 2}", "weigth", line=131, written=span("  weigth: 2", "weigth", line=4)),
)
UNUSED = Diagnostic(
    code="KD601", message="teacher `t` is unused", severity="warning", path=("teachers", "t", 0)
)


def plan(processes: int = 1, steps_per_epoch: int = 40, epochs: int = 3) -> Plan:
    """A distillation on digits: two networks, one pair."""
    return Plan(
        name="digits_kd",
        run_dir=RUN,
        device="cpu",
        processes=processes,
        precision="fp32",
        networks=(
            NetworkFacts(name="student", parameters=9_999, flops=1_234_567),
            NetworkFacts(
                name="teacher0", parameters=25_600_000, flops=4_090_000_000, runs_until="model.layer3"
            ),
        ),
        pairs=(
            Pair(
                term="job0.teacher0.l2",
                student_layer="model.layer3",
                student_shape="[B, 64, 4, 4]",
                adapter="conv 1x1 64 to 256",
                teacher="teacher0",
                teacher_layer="model.layer3",
                teacher_shape="[B, 256, 4, 4]",
                loss="l2_loss",
                weight=0.5,
            ),
        ),
        samples=1437,
        batch_size=64,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs * steps_per_epoch,
        effective_lr=0.1,
    )


def step(number: int, steps_per_epoch: int = 40, epochs: int = 3, *, seconds: float = 0.02) -> Step:
    """The step of that number (from 1)."""
    return Step(
        step=number,
        total_steps=epochs * steps_per_epoch,
        epoch=(number - 1) // steps_per_epoch,
        step_in_epoch=(number - 1) % steps_per_epoch + 1,
        steps_per_epoch=steps_per_epoch,
        losses={"task.ce": 1.0, "job0.teacher0.l2": 0.5},
        total=1.5,
        lr=0.1,
        images=64,
        seconds=seconds,
    )


def evaluation(step: int, top1: float, network: str = "student", *, best: bool = False) -> Evaluation:
    """A network's top-1 and cross entropy at a step."""
    return Evaluation(
        step=step,
        epoch=step // 40,
        network=network,
        metrics={"cross_entropy": 0.25, "top1": top1},
        primary="top1",
        best=best,
        seconds=0.5,
    )


def finished(step: int = 120) -> Finished:
    """The end of that training."""
    return Finished(
        step=step,
        seconds=187.0,
        run_dir=RUN,
        student_path=RUN / "student.safetensors",
        primary="top1",
        last={"top1": 96.5, "cross_entropy": 0.25},
        best={"top1": 97.25, "cross_entropy": 0.2},
        teachers={"teacher0": {"top1": 98.5, "cross_entropy": 0.1}},
    )


def records(steps_per_epoch: int = 40, epochs: int = 3) -> Iterator[Record]:
    """A whole training."""
    yield plan(steps_per_epoch=steps_per_epoch, epochs=epochs)
    yield evaluation(0, 98.5, "teacher0")
    yield Notice(message="teacher0 is above chance")
    for epoch in range(epochs):
        for index in range(steps_per_epoch):
            yield step(epoch * steps_per_epoch + index + 1, steps_per_epoch, epochs)
        done = (epoch + 1) * steps_per_epoch
        yield evaluation(done, 90.0 + epoch, best=True)
        yield Saved(step=done, path=RUN / "checkpoints" / f"{done}")
    yield Notice(message="lr is high", level="warning")
    yield finished(epochs * steps_per_epoch)
