"""ViewModule, one entry of a `net` list; and names for the outputs of whole models."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.errors import SpecError, SpecPath

Outputs = Mapping[str, Any]
"""Batch fields and the named outputs of the modules before, read-only."""


class ViewModule(nn.Module):
    """One entry of a `net` list.

    forward(outputs) returns only what is new; it never writes into `outputs` nor changes a tensor of
    it in place. Outputs named `loss` or `*_loss` are the task's own losses. `outplanes` and
    `out_strides`, where a module has them, size the modules after it (`inplanes`). `training_only`
    modules are left out of the exported network. `whole` modules are a complete model by themselves.
    `aliases` are other spellings of layer paths. `needs_values` modules compute from boxes or scores themselves,
    so that shapes alone do not tell what they give. A module that is costly on all its inputs may take a few of
    them where `rehearsed` is set, and says so in `takes_few`.
    """

    training_only: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False
    takes_few: ClassVar[str] = ""
    rehearsed: bool = False
    aliases: ClassVar[Mapping[str, str]] = {}
    outplanes: int | list[int] | None = None
    out_strides: list[int] | None = None

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """The new named outputs."""
        raise NotImplementedError(type(self).__name__)


def is_task_loss(name: str) -> bool:
    """Whether a named output is one of the task's own losses."""
    return name == "loss" or name.endswith("_loss")


DROPPED = "_"
"""The name in `outputs` for an entry that nobody needs."""


def named_outputs(result: Any, names: Sequence[str] | None, module: str, path: SpecPath) -> dict[str, Any]:
    """A model's outputs by name.

    names: those of the entries of a tuple or list, in order; without them a tensor is `logits`, and a mapping, a
    dataclass and a named tuple have names of their own. A list or tuple under one name becomes a list, what is
    None is left out. module, path: the module's name and place in the spec. Raises SpecError KD411 where something
    has no name, KD473 where the names don't fit.
    """
    own = _own_names(result)
    if names is None:
        if own is None:
            raise _nameless(result, module, path)
        return own
    where = (*path, "outputs")
    listed = ", ".join(names)
    if isinstance(result, Tensor):
        # Many a model returns its auxiliary heads in training only, and its logits alone in evaluation.
        if len(names) > 1 and "logits" not in names:
            help = "leave `outputs` out, or name the one tensor: `outputs: [logits]`"
            raise SpecError.at(where, "KD473", f"module `{module}` returned one tensor, not [{listed}]", help)
        return {names[0] if len(names) == 1 else "logits": result}
    if not isinstance(result, list | tuple):
        if own is None:
            raise _nameless(result, module, path)
        message = f"module `{module}` names its outputs itself: {', '.join(f'`{name}`' for name in own)}"
        raise SpecError.at(where, "KD473", message, "leave `outputs` out")
    if len(result) != len(names):
        message = (
            f"module `{module}` returned {kind_of(result)}, and `outputs` has {_count(len(names), 'name')}"
        )
        help = f"one name for each, `{DROPPED}` for what nobody needs: `{_suggested(result)}`"
        raise SpecError.at(where, "KD473", message, help)
    return {
        name: _as_list(value)
        for name, value in zip(names, result, strict=True)
        if name != DROPPED and value is not None
    }


def refuse_names(
    new: Mapping[str, Any], batch: Collection[str], before: Collection[str], module: str, path: SpecPath
) -> None:
    """Raise SpecError KD473 where an output would hide what the batch holds, or a loss that another module gave.

    batch: the names that it may not give. before: the outputs of the modules before it. module, path: name and place.
    """
    for name in new:
        if name in batch:
            message = f"module `{module}` returns `{name}`, which is what the batch holds under that name"
            help = f"what comes after it would read its `{name}` in place of the data's: name it otherwise"
            raise SpecError.at(path, "KD473", message, help)
        if name in before and is_task_loss(name):
            message = (
                f"module `{module}` gives the loss `{name}`, which one before it has given: one would be lost"
            )
            help = (
                "let one have another name that ends in `_loss` (of a post-process or a peer by its `prefix`)"
            )
            raise SpecError.at(path, "KD473", message, help)


def kind_of(result: Any) -> str:
    """The type of what a model returned, in words."""
    name = type(result).__name__
    if isinstance(result, list | tuple):
        return f"a {name} of {len(result)}"
    return f"a `{name}`"


def _own_names(result: Any) -> dict[str, Any] | None:
    if isinstance(result, Tensor):
        return {"logits": result}
    if isinstance(result, Mapping):
        return {name: value for name, value in result.items() if value is not None}
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        return {name: value for name, value in values.items() if value is not None}
    # Inception and GoogLeNet: a named tuple with auxiliary logits while training.
    if isinstance(getattr(result, "logits", None), Tensor):
        return {"logits": result.logits}
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        return {name: value for name, value in result._asdict().items() if value is not None}
    return None


def _nameless(result: Any, module: str, path: SpecPath) -> SpecError:
    help = "a whole model returns its logits, or a mapping of named outputs"
    if isinstance(result, list | tuple) and result:
        help = f"name what it returns, in order, in a line of the module: `{_suggested(result)}`"
    return SpecError.at(
        path, "KD411", f"module `{module}` returned {kind_of(result)} instead of a tensor", help
    )


def _suggested(result: Sequence[Any]) -> str:
    """The line `outputs: [...]` for what was returned; the first tensor [B, K] is taken for the logits."""
    logits = next((i for i, v in enumerate(result) if isinstance(v, Tensor) and v.dim() == 2), None)
    others = [i for i in range(len(result)) if i != logits]
    names = {i: "features" if number == 1 else f"features{number}" for number, i in enumerate(others, 1)}
    return f"outputs: [{', '.join(names.get(i, 'logits') for i in range(len(result)))}]"


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, list | tuple) else value


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
