"""Whole classifiers of torchvision or timm by name."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError

import torchvision.models
from torch import nn

from kdcli.errors import SpecError, SpecPath, did_you_mean
from kdcli.models.detection.whole import build_detector, detector_names

UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")


def build_torchvision(name: str, kwargs: Mapping[str, Any], path: SpecPath) -> nn.Module:
    """A classifier or detector of torchvision; random weights unless kwargs name `weights`."""
    detectors = detector_names()
    names = [*torchvision.models.list_models(module=torchvision.models), *detectors]
    if name not in names:
        message = f"torchvision has no model `{name}`"
        if name in torchvision.models.list_models(module=torchvision.models.detection):
            message = (
                f"kdcli leaves out torchvision's models with masks and key points, as `{name}`: boxes only"
            )
        elif name in torchvision.models.list_models():
            message = f"kdcli leaves out torchvision's `{name}`: classifiers and detectors of boxes only"
        raise SpecError.at((*path, "type"), "KD401", message, did_you_mean(name, names))
    weights = _weights(name, kwargs.get("weights"), path)
    arguments = {key: value for key, value in kwargs.items() if key != "weights"}
    if weights is None and name in ("inception_v3", "googlenet"):
        arguments.setdefault("init_weights", True)
    try:
        if name in detectors:
            return build_detector(name, arguments, weights)
        return torchvision.models.get_model(name, weights=weights, **arguments)  # type: ignore[no-any-return]
    except TypeError as error:
        raise _unknown_argument(error, f"torchvision.{name}", _torchvision_arguments(name), path) from error
    except (URLError, OSError) as error:
        if weights is None:
            raise
        raise download_failed(
            f"torchvision's weights `{weights}`", error, (*path, "kwargs", "weights")
        ) from error


def download_failed(what: str, error: Exception, path: SpecPath) -> SpecError:
    """The finding for weights that could not be fetched."""
    return SpecError.at(
        path,
        "KD535",
        f"{what} can't be downloaded: {error}",
        "download them where there is a network, and give the file as the weight",
    )


def _weights(name: str, given: Any, path: SpecPath) -> Any:
    """The torchvision weights that the user asked for, or None."""
    if given is None:
        return None
    choices = torchvision.models.get_model_weights(name)
    known = [*choices.__members__, "DEFAULT"]
    word = str(given).rsplit(".", 1)[-1]
    if word not in known:
        raise SpecError.at(
            (*path, "kwargs", "weights"),
            "KD412",
            f"torchvision has no weights `{given}` for `{name}`",
            did_you_mean(word, known),
        )
    return choices[word] if word != "DEFAULT" else choices.DEFAULT


def _torchvision_arguments(name: str) -> list[str]:
    """What the model's class takes that the name leaves open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, weights=None)
    taken = inspect.signature(type(model).__init__).parameters.values()
    return ["weights", *(p.name for p in taken if p.kind is not p.VAR_KEYWORD and p.default is not p.empty)]


def build_timm(name: str, kwargs: Mapping[str, Any], path: SpecPath) -> nn.Module:
    """A classifier of timm; random weights unless kwargs say `pretrained: true`."""
    try:
        import timm
    except ImportError as error:
        raise SpecError.at(
            (*path, "type"), "KD415", "timm is not installed", "install it: `pip install 'kdcli[timm]'`"
        ) from error
    base = name.split(".")[0]
    if not timm.is_model(base):
        raise SpecError.at(
            (*path, "type"), "KD401", f"timm has no model `{base}`", did_you_mean(base, timm.list_models())
        )
    try:
        model = timm.create_model(name, **kwargs)
    except TypeError as error:
        taken = ["pretrained", "num_classes", "in_chans", "drop_rate", "drop_path_rate"]
        raise _unknown_argument(error, f"timm.{name}", taken, path) from error
    except OSError as error:
        if not kwargs.get("pretrained"):
            raise
        raise download_failed(
            f"timm's weights of `{name}`", error, (*path, "kwargs", "pretrained")
        ) from error
    assert isinstance(model, nn.Module)
    return model


def _unknown_argument(error: TypeError, kind: str, known: list[str], path: SpecPath) -> Exception:
    """The finding for an argument a model does not take; the error itself if it is another one."""
    found = UNKNOWN_ARGUMENT.search(str(error))
    if found is None:
        return error
    key = found[1]
    return SpecError.at(
        (*path, "kwargs", key),
        "KD404",
        f"`{kind}` has no argument `{key}`",
        did_you_mean(key, known),
        on_key=True,
    )
