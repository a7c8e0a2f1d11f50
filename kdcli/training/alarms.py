"""The rules of the watch, as small functions of numbers, and what it remembers between them.

Beside each limit stands what good runs reach and what broken ones do: the samples and the methods of
`tests/benchmarks/methods.py` on one side, `tests/training/test_watch.py` on the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from kdcli.spec.schema import Ema
from kdcli.training.optim import decay_at

WINDOW = 20
"""Steps whose mean loss is compared with the start."""

SETTLED = 100
"""Steps after the warm-up before a student may be said to have learnt nothing."""

IN_A_ROW = 3
"""Looks (or windows) in a row that have to agree, where one alone may be chance."""

ABOVE = 3.0
"""How often its start a task's loss may be: good runs reach 1.05, lr 100 on digits 4e8."""

ABOVE_OTHER = 30.0
"""The same for other losses, whose start may be next to nothing: good runs reach 3.9 (tfkd_reg), lr 100 4e8."""

GUESSING = 0.98
"""From this share of the loss of a guess on nothing is learnt: good runs reach 0.84 in 100 steps, lr 1e-12 has 1.02."""

TELLING = 0.05
"""Below this loss a guess is nearly right, as where one class is nearly all of the data."""

ALIKE = 0.01
"""Below this spread of the logits, in nats, outputs are alike: good runs have 0.5 and more, lr 100 on digits 0."""

DEAD = 0.95
"""From this share of dead units on: good runs have 0.38 at most (cat_kd), collapsed ones 1."""

STILL = 1e-8
"""Below this share of the weights an update is none: lr 1e-12 has 2e-13, the very last step of a cosine 9e-9."""

OVERSHOT = 3.0
"""An update of so many times the weights, twice in a row: good runs reach 1.6, in the first step of cat_kd."""

OVERSHOT_FAR = 10.0
"""An update that is too large even alone: the first with lr 100 on digits is 15 times the weights."""

HELD = 0.1
"""The share of the initial weights that a moving average may end with: decay 0.95 ends with none, 0.999 after 126
steps with 0.88."""

LAGGING = 0.5
"""How far from the weights a moving average may end, over their norm."""

DRIFTED = 100.0
"""How often its median so far a gradient may be: good runs reach 22, where nearly all is learnt (digits_teacher)."""

CONSTANT = 0.98
"""From this share of a constant answer's cost on a term teaches nothing: see `no_better_than_constant`."""

PATIENCE = 0.5
"""The share of a term's steps after which it may be judged so."""

HISTORY = 100
"""Over so many looks, and the first, the median is taken."""


# rules


def far_above(start: float, mean: float, *, floor: float = 0.0, limit: float = ABOVE) -> bool:
    """Whether a loss is far above its start; floor: a value that is no sign of trouble, whatever the start."""
    return mean > limit * max(start, floor) > 0


def knows_nothing(mean: float, guessing: float) -> bool:
    """Whether a task's loss is no better than guessing, where guessing is not nearly right already."""
    return guessing > TELLING and mean > GUESSING * guessing


def all_alike(spread: float) -> bool:
    """Whether outputs do not differ between images; spread: their standard deviation, in nats for logits."""
    return spread < ALIKE


def mostly_dead(alive: Sequence[float]) -> bool:
    """Whether most units gave every image the same; alive: above 0 for each unit that did not."""
    return len(alive) > 1 and share_dead(alive) >= DEAD


def share_dead(alive: Sequence[float]) -> float:
    """The share of units that gave every image the same."""
    return sum(not one for one in alive) / len(alive)


def stands_still(ratio: float) -> bool:
    """Whether an update changed no weight; ratio: the norm of the change over that of the weights."""
    return ratio < STILL


def start_held(spec: Ema, steps: int) -> float:
    """The share of the initial weights in a moving average after so many steps: the product of its decays.

    0 once it is below a thousandth.
    """
    every = spec.kwargs.inner_T if spec.ema_type == "linear" else 1
    updates = -(-steps // every)
    end = spec.kwargs.decay**spec.kwargs.inner_T
    share = 1.0
    for number in range(updates):
        decay = decay_at(spec, number * every)
        if share < 1e-3:
            return 0.0
        if decay == end:
            return share * decay ** (updates - number)
        share *= decay
    return share


def lags(distance: float) -> bool:
    """Whether an average is far from the weights; distance: the norm of the difference over that of the weights."""
    return distance > LAGGING


def drifted(before: Sequence[float], now: float) -> bool:
    """Whether a gradient is far above the median of the looks before (five at least), and above its first.

    A loss that is nearly learnt has next to no gradient: one hard batch is then many times the median.
    """
    return len(before) >= 5 and now > DRIFTED * max(statistics.median(before), before[0] / 10) > 0


def no_better_than_constant(mean: float, constant: float) -> bool:
    """Whether a term's loss is that of a student that answers the same at every place of every image."""
    return mean > CONSTANT * constant > 0


def steps_to_learn(steps: int) -> float:
    """How many steps at its full weight a term has, of so many of its stage, to get below a constant answer's cost."""
    return max(float(SETTLED), PATIENCE * steps)


# what is remembered


@dataclass
class Memory:
    """What the watch remembers of a run, all of it in the checkpoint: plain numbers.

    told: rules that have spoken, with what about. The rest is of the current stage. starts: by loss, its first value,
    before an update. windows: by loss, sum and count of the current window. above: windows in a row that were far
    above. epoch: sum, count and first lr of the steps since an epoch was judged; unsettled: whether one of them was in
    a warm-up. targets: as the task counts them in these; mixed: whether they are. moving: looks at which weights moved.
    still, large, alike: looks in a row at which they did not, at which they moved too far, at which outputs were alike.
    still_since: the step before the first still one. alive: per unit, in how many of the last alive_looks it was.
    pulls: by loss, its gradients of late. lr: at the last look. felt: by loss, for how many steps it was in force after
    the warm-up, those at a part of its weight as that part; better: losses that were below a constant answer's cost.
    """

    told: list[str] = field(default_factory=list)
    stage: int = -1
    starts: dict[str, float] = field(default_factory=dict)
    windows: dict[str, list[float]] = field(default_factory=dict)
    above: dict[str, int] = field(default_factory=dict)
    epoch: list[float] = field(default_factory=list)
    unsettled: bool = False
    targets: list[float] = field(default_factory=list)
    mixed: bool = False
    moving: int = 0
    still: int = 0
    still_since: int = 0
    large: int = 0
    alike: int = 0
    alive: list[float] = field(default_factory=list)
    alive_looks: int = 0
    pulls: dict[str, list[float]] = field(default_factory=dict)
    lr: float = 0.0
    felt: dict[str, float] = field(default_factory=dict)
    better: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Memory:
        """From a checkpoint; what it does not know is as at the start."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in state.items() if name in known})


# what is said


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule's name and what helps. stops: whether `on_collapse: stop` is meant for it."""

    name: str
    remedy: str
    stops: bool = True


TOO_FAST = "lower the lr, warm it up (`warmup_iter`), or clip gradients (`trainer.clip_grad_norm`)"

RULES = {
    "KD780": Rule("loss far above its start", TOO_FAST),
    "KD781": Rule(
        "nothing learnt",
        "lower the lr or warm it up; if it is tiny already, raise it; look whether labels fit the images",
    ),
    "KD782": Rule(
        "outputs all alike",
        "lower the lr or warm it up; a student that has come to this hardly recovers: begin again",
    ),
    "KD783": Rule("dead units", "lower the lr or warm it up; dead units hardly recover: begin again"),
    "KD784": Rule(
        "updates change no weight",
        "raise the lr, look at the schedule's end (`T_max`) and at `trainer.clip_grad_norm`",
    ),
    "KD785": Rule("updates larger than the weights", TOO_FAST),
    "KD786": Rule("average holds its start", "lower `trainer.ema.kwargs.decay`, or say `ema_type: exp`"),
    "KD787": Rule(
        "average far from the weights", "lower `trainer.ema.kwargs.decay`, or let the lr fall to the end"
    ),
    "KD788": Rule(
        "student at chance",
        "look at lr and labels, and at the alarms before this one if there are any; train longer",
    ),
    "KD789": Rule(
        "gradient far from its median",
        "lower the lr or the loss's `loss_weight`, or clip gradients (`trainer.clip_grad_norm`)",
    ),
    "KD790": Rule(
        "no better than a constant",
        "give these layers another loss (`kdcli inspect-features --pairs` proposes one) or an adapter without a norm "
        "(`{type: auto, kwargs: {norm: none}}`), raise the lr or the term's `loss_weight`, or name other layers",
        stops=False,
    ),
}
