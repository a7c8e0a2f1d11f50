"""Whether a network lists every parameter that it computes with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from kdcli.distill.taps import tensors_in
from kdcli.errors import Diagnostic, SpecPath


def unregistered(network: nn.Module, shown: Any, path: SpecPath = ()) -> list[Diagnostic]:
    """KD736 where what the student shows was computed with parameters that `network` has not: in a list, say.

    No optimizer has them and no file gets them, so that what is saved is another network. shown: the student's
    outputs and features, with their graph.
    """
    own = {id(parameter) for parameter in network.parameters()}
    used = _leaves(tensors_in(shown))
    lost = [one for one in used if isinstance(one, nn.Parameter) and one.requires_grad and id(one) not in own]
    if not lost:
        return []
    shapes = ", ".join(str(list(one.shape)) for one in lost[:3]) + (", ..." if len(lost) > 3 else "")
    message = (
        f"the student computes with {len(lost)} parameter{'s' if len(lost) > 1 else ''} that it does not list"
        f" ({shapes}): not trained, and in no file of the student"
    )
    help = (
        "layers in a Python list or dict are not registered: put them into an nn.ModuleList or nn.ModuleDict"
    )
    return [Diagnostic(code="KD736", message=message, help=help, path=path)]


def _leaves(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors that a backward pass from these would give gradients to."""
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [after for after, _ in node.next_functions if after is not None]
