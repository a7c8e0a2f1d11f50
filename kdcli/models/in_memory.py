"""A network that Python has given: copied for each use, so that the caller's own is never changed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdcli.errors import SpecError, SpecPath
from kdcli.failures import text_of
from kdcli.spec.in_memory import in_memory


def from_python(*, architecture: str) -> nn.Module:
    """A network in memory, given as `student` or `teachers` to a function of Python's `kdcli`.

    architecture: which it is; `kdcli.train` writes it into the run's spec. `given_module` builds it.
    """
    raise NotImplementedError(architecture)


def given_module(kwargs: Mapping[str, Any], path: SpecPath) -> nn.Module:
    """A copy, on the CPU, of the module that was given for this place of the spec.

    Raises SpecError KD870 where none was, KD871 where it is another than the spec says, KD872 where it can't be copied.
    """
    module = in_memory().module(path)
    stated, found = kwargs.get("architecture"), architecture_of(module)
    if stated is not None and stated != found:
        raise SpecError.at(
            (*path, "kwargs", "architecture"),
            "KD871",
            f"the network that was given is `{found}`, and the spec was made with `{stated}`",
            "give one of the same class, built with the same arguments: names and shapes of its weights are compared",
        )
    return copy_of(module, path)


def copy_of(module: nn.Module, path: SpecPath) -> nn.Module:
    """A copy of a module on the CPU, with its weights; raises SpecError KD872."""
    lazy = next((name for name, parameter in module.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        message = f"the network that was given is not built yet: its parameter `{lazy}` has no shape"
        raise SpecError.at(path, "KD872", message, "run it once on a batch before it is given")
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        help = "old `weight_norm` and `spectral_norm` can't be copied, those of torch.nn.utils.parametrizations can"
        message = f"the network that was given can't be copied: {text_of(error)}"
        raise SpecError.at(path, "KD872", message, help) from error
    return copied.to("cpu")


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile's wrapper."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def architecture_of(module: nn.Module) -> str:
    """`Net-1f0e9a4b77c2`: the class, and a digest of what the network says of itself and its tensors' shapes."""
    tensors = [
        (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, torch.Tensor) and not is_lazy(tensor)
    ]
    digest = hashlib.sha256(repr([_types(module), tensors]).encode()).hexdigest()
    return f"{type(module).__name__}-{digest[:12]}"


def _types(module: nn.Module) -> list[tuple[str, str, str]]:
    """Each module's path, class and arguments as it prints them, whatever mode it is in."""
    return [(path, type(one).__name__, one.extra_repr()) for path, one in module.named_modules()]
