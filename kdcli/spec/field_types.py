"""The types of a spec's fields: mappings, lists, numbers in their ranges, budgets."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticKnownError

T = TypeVar("T")


def _as_tuple(value: Any) -> Any:
    """A list; one scalar alone is a list of one, as `mimic_name: head.classifier`."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, (str, int, float)) else value


def _as_whole(value: Any) -> Any:
    """1e5 is a whole number, however it is written; 64 bits hold it."""
    if not isinstance(value, float) or not value.is_integer():
        return value
    if value >= 2**63:
        raise PydanticKnownError("less_than_equal", {"le": 2**63 - 1})
    return int(value)


def _as_written(value: float) -> float:
    """A whole number stays one, so that it is shown and written as such."""
    return int(value) if value.is_integer() else value


def _as_budget(value: Any) -> Any:
    """`1%` is the share 0.01."""
    percent = _PERCENT.fullmatch(value) if isinstance(value, str) and len(value) < 20 else None
    return _as_whole(value if percent is None else float(percent[1]) / 100)


_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")

Many = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
Whole = Annotated[int, BeforeValidator(_as_whole)]
MOST = 10**12
"""Of whatever is counted: more than any run, data set or network has."""
PositiveInt = Annotated[Whole, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[Whole, Field(ge=0, le=MOST)]
TeacherClass = NonNegativeInt | str
Epochs = Annotated[float, Field(gt=0, le=MOST), AfterValidator(_as_written)]
"""Whole, or with a fraction of an epoch's steps."""
Pixels = Annotated[PositiveInt, Field(le=2**16)]
Positive = Annotated[float, Field(gt=0)]
MOST_TEMPERATURE = 10_000.0
SoftmaxTemperature = Annotated[float, Field(gt=0, le=MOST_TEMPERATURE)]
Budget = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)],
    BeforeValidator(_as_budget),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {"type": "string", "pattern": f"^{_PERCENT.pattern}$"},
            ]
        }
    ),
]
"""How many, or (a number below 1, or `1%`) which share of all."""


class Model(BaseModel):
    """A mapping of the spec: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class Component(Model):
    """One thing chosen by name, with its keyword arguments."""

    type: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
