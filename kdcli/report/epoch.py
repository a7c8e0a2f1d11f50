"""What one epoch came to so far: mean loss parts, speed, time left."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdcli.records import Step
from kdcli.report.quantities import duration, measure, rate, speed

RECENT_SECONDS = 30.0
"""Speed and time left look back about this far."""


@dataclass(slots=True)
class EpochSoFar:
    """Sums over the steps of one epoch; taking in a step costs a few additions."""

    processes: int = 1
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    total: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    last: Step | None = None
    _recent_steps: float = 0.0
    _recent_images: float = 0.0
    _recent_seconds: float = 0.0

    def take(self, step: Step) -> None:
        """Add one step; a step of another epoch starts anew."""
        if self.last is not None and step.epoch != self.last.epoch:
            self.steps, self.images, self.seconds, self.total = 0, 0, 0.0, 0.0
            self.losses, self.counts = {}, {}
        self.last = step
        self.steps += 1
        self.images += step.images
        self.seconds += step.seconds
        self.total += step.total
        for name, value in step.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        if self._recent_seconds > RECENT_SECONDS:
            self._recent_steps, self._recent_images = self._recent_steps / 2, self._recent_images / 2
            self._recent_seconds /= 2
        self._recent_steps += 1
        self._recent_images += step.images
        self._recent_seconds += step.seconds

    @property
    def mean_total(self) -> float:
        """The mean of the total loss over the epoch so far."""
        return self.total / self.steps if self.steps else 0.0

    def parts(self) -> str:
        """`task.ce 0.4120  job0.teacher0.kd 1.2000`: means over the steps in which each was in force."""
        return "  ".join(f"{name} {measure(self.losses[name] / self.counts[name])}" for name in self.losses)

    def where(self) -> str:
        """`epoch 3/60`, with the stage where the run has stages."""
        assert self.last is not None
        step = self.last
        epochs = max(step.epoch + 1, -(-step.total_steps // max(1, step.steps_per_epoch)))
        stage = f" [{step.stage}]" if step.stage else ""
        return f"epoch {step.epoch + 1}/{epochs}{stage}"

    def speed_now(self) -> str:
        """Images per second of all processes, over the last half minute or so."""
        return speed(self._recent_images * self.processes, self._recent_seconds)

    def speed_mean(self) -> str:
        """Images per second of all processes, over the epoch."""
        return speed(self.images * self.processes, self.seconds)

    def left(self) -> str:
        """The time the remaining steps of the run will take at the present speed."""
        assert self.last is not None
        remaining = self.last.total_steps - self.last.step
        return duration(remaining * self._recent_seconds / max(1.0, self._recent_steps))

    def line(self) -> str:
        """The epoch in one line."""
        assert self.last is not None
        step = self.last
        steps = f"step {step.step_in_epoch}/{step.steps_per_epoch}"
        loss = f"loss {measure(self.mean_total)}  ({self.parts()})"
        return f"{self.where()}  {steps}  {loss}  lr {rate(step.lr)}"
