"""safetensors: weights and metadata, for users who have the architecture in code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcli.exports.format import Answer
from kdcli.models import MODULES
from kdcli.models.module import ViewModule
from kdcli.models.network import Network
from kdcli.models.weights import save_safetensors
from kdcli.spec.schema import ModuleSpec
from kdcli.tasks.task import Portable, Tensors


def loading_lines(
    modules: Sequence[ModuleSpec], net: nn.Module, path: Path, state: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """The lines of Python that build a whole model and read the file, without kdcli where it is of another package.

    None where the student is a list of modules, or has another network's end: no class has the file's names then.
    """
    names = net.names_in_file() if isinstance(net, Network) else {}
    if not names or all(key == name for key, name in names.items()):
        return ()
    part = next(iter(names)).split(".", 1)[0]
    module = next(one for one in modules if one.name == part)
    kwargs = {key: value for key, value in module.kwargs.items() if key not in FETCHED}
    library, _, name = module.type.partition(".")
    if library == "torchvision" and ":" not in module.type:
        detector = {"weights_backbone": None} if isinstance(net.get_submodule(part), ViewModule) else {}
        needs, made = "import torchvision", "torchvision.models.get_model"
        arguments = [repr(name), *_as_arguments({**detector, **kwargs})]
    elif library == "timm" and ":" not in module.type:
        needs, made, arguments = "import timm", "timm.create_model", [repr(name), *_as_arguments(kwargs)]
    else:
        target = MODULES.get(module.type)
        code, _, attribute = (module.type if target is None else target.path).partition(":")
        needs, made = f"from {code} import {attribute}", attribute
        arguments = _as_arguments({**kwargs, **({} if target is None else target.preset)})
    whole = (
        "" if len(state) == len(names) else ", strict=False"
    )  # a head that nothing trained is not in the file
    return (
        f"{needs}; from safetensors.torch import load_file",
        f"net = {made}({', '.join(arguments)})",
        f"net.load_state_dict(load_file({str(path)!r}){whole})",
    )


FETCHED = ("weights", "weights_backbone", "pretrained")
"""Arguments about published weights, which the file's replace."""


def _as_arguments(kwargs: Mapping[str, object]) -> list[str]:
    return [f"{key}={value!r}" for key, value in kwargs.items()]


class Safetensors:
    """One file under the names that the network's parameters have."""

    suffix: ClassVar[str] = ".safetensors"
    runner: ClassVar[str] = "torch"
    is_graph: ClassVar[bool] = False

    def check(self) -> None:
        """Nothing is missing."""

    def write(self, student: Portable, example: Tensors, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the student's own weights."""
        save_safetensors(student.state(), path, {"format": "kdcli-student", **metadata})

    def read(self, path: Path, student: Portable) -> Answer:
        """A freshly built student with the weights of the file."""
        student.load(path)

        def answer(*inputs: Tensor) -> Tensors:
            with torch.inference_mode():
                return student.eager(*inputs)

        return answer
