"""Trial runs of a network: its state is put back, and a failure names the layer that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from kdcli.distill.adapters import shown
from kdcli.distill.channels import image_size
from kdcli.distill.taps import tensors_in
from kdcli.errors import KdError, SpecError, SpecPath
from kdcli.failures import own_mistake, place_of, with_place
from kdcli.models.feature_layouts import sizes_that_fit
from kdcli.models.network import TEACHERS
from kdcli.models.torch_modes import NOT_FAKE, TooMuch
from kdcli.spec.schema import ModuleSpec

T = TypeVar("T")


LARGE = 2**22
"""Elements of a buffer (a memory of all samples) whose copy is kept in the host's memory, not on the device."""


@contextmanager
def restored_state(*modules: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore the generators of torch, and every buffer and training mode of the modules, at the end.

    Gives a function that restores the buffers at once.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    buffers = [
        (buffer, buffer.detach().to("cpu", copy=True) if buffer.numel() > LARGE else buffer.detach().clone())
        for module in modules
        for buffer in module.buffers()
    ]
    modes = [(child, child.training) for module in modules for child in module.modules()]

    @torch.no_grad()
    def put_back() -> None:
        for buffer, before in buffers:
            buffer.copy_(before)

    with torch.random.fork_rng(devices=devices):
        try:
            yield put_back
        finally:
            put_back()
            for child, mode in modes:
                child.training = mode


def rehearse(
    action: Callable[[], T],
    net: nn.Module,
    batch: Mapping[str, Any],
    modules: Sequence[ModuleSpec],
    path: SpecPath,
) -> T:
    """The result of `action`, which runs the network on the batch; raises SpecError KD418 at the module that fails.

    modules, path: the network's list in the spec, and its place. What needs values and finds none
    (NOT_FAKE) passes, and so does TooMuch.
    """
    try:
        return action()
    except (*NOT_FAKE, TooMuch):
        raise
    except KdError as error:
        if all(found.path is not None for found in error.diagnostics):
            raise
        place = _place(_where(net, batch)[0], modules, path)
        raise SpecError([replace(found, path=found.path or place) for found in error.diagnostics]) from error
    except Exception as error:
        if own_mistake(error):
            raise
        raise _failure(net, batch, modules, path, error) from error


def _failure(
    net: nn.Module,
    batch: Mapping[str, Any],
    modules: Sequence[ModuleSpec],
    path: SpecPath,
    error: Exception,
) -> SpecError:
    layer, given = _where(net, batch)
    message = f"`{layer}`{given} fails: {_reason(error)}" if layer else f"it fails: {_reason(error)}"
    image = batch.get("image")
    seen = f" on images {shown(image.shape)}" if isinstance(image, torch.Tensor) else ""
    help = "do the module's widths, strides and number of classes fit what comes before it and the data?"
    if isinstance(error, KeyError) and error.args == ("logits",):
        help = "let the network return its logits as a tensor, or under the name `logits` of a mapping"
    size = image_size(batch)
    fitting = None if size is None else sizes_that_fit(net, size)
    if fitting is not None:
        help = fitting + (
            f"; `input: {{size: [height, width]}}` beside the mimic_name of {path[-1]} gives it one of its own"
            if path[:1] == (TEACHERS,)
            else "; resize the images"
        )
    return SpecError.at(
        _place(layer, modules, path), "KD418", f"`{path[-1]}` can't run{seen}: {message}", help
    )


def _place(layer: str, modules: Sequence[ModuleSpec], path: SpecPath) -> SpecPath:
    """Where in the spec the module stands that a layer belongs to."""
    name = layer.partition(".")[0]
    index = next((i for i, module in enumerate(modules) if module.name == name), None)
    return path if index is None else (*path, index)


def _where(net: nn.Module, batch: Mapping[str, Any]) -> tuple[str, str]:
    """The deepest layer that begins and does not end, and what it is given."""
    begun: list[tuple[str, str]] = []
    with ExitStack() as stack:
        for name, module in net.named_modules():
            if not name:
                continue

            def begin(module: nn.Module, args: Any, name: str = name) -> None:
                given = ", ".join(shown(t.shape) for t in tensors_in(list(args)))
                kind = type(module).__name__
                begun.append((name, f" ({kind} on {given})" if given else f" ({kind})"))

            def end(_module: nn.Module, _args: Any, _output: Any) -> None:
                begun.pop()

            stack.callback(module.register_forward_pre_hook(begin).remove)
            stack.callback(module.register_forward_hook(end).remove)
        try:
            with torch.no_grad(), restored_state(net):
                net(batch)
        except Exception:
            return begun[-1] if begun else ("", "")
    return "", ""


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        given = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        return f"it reads `{error.args[0]}`, which nothing before it gives{given}"
    if place_of(error):
        return with_place(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
