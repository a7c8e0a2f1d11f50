"""Words for the JSON Schema that no table has: loggers, switches of optimizers, and what a slip makes of a name."""

from __future__ import annotations

from collections.abc import Collection

LOGGER_NAMES = ("mlflow", "tensorboard", "wandb")
"""Those of `kdcli.report.loggers`, which this room does not import."""
SWITCHES = ("amsgrad", "centered", "maximize", "nesterov")
"""Arguments of torch's optimizers that are true or false."""
LEAST = 4
"""Of a name with so many letters what looks like it is flagged: a shorter one may be another word."""


def slips_of(names: Collection[str]) -> dict[str, bool]:
    """Pattern properties that no object may have: the names, misspelt."""
    return {near_misses(name, names): False for name in names if len(name) >= LEAST}


def near_misses(name: str, known: Collection[str], behind: str = "") -> str:
    """A pattern of what a slip makes of a name: a letter missing, doubled, another, two exchanged; none of `known`.

    behind: a pattern of what may follow.
    """
    slips = {name[:i] + name[i + 1 :] for i in range(len(name))}
    slips |= {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1)}
    slips |= {f"{name[:i]}[^{name[i]}]{name[i + 1 :]}" for i in range(len(name))}
    slips |= {f"{name[:i]}\\w{name[i:]}" for i in range(1, len(name))}
    slips -= {name}
    others = "|".join(sorted(known))
    return f"^(?!({others}){behind}$)({'|'.join(sorted(slips))}){behind}$"
