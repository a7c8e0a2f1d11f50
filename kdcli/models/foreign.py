"""Whole classifiers of torchvision or timm by name."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torchvision.models
from torch import nn

from kdcli.errors import SpecError, SpecPath, did_you_mean
from kdcli.models.detection.whole import build_detector, detector_names
from kdcli.spec.published import HUB_PREFIXES

UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")


def build_torchvision(name: str, kwargs: Mapping[str, Any], path: SpecPath) -> nn.Module:
    """A classifier or detector of torchvision with random weights; raises SpecError KD558 where kwargs name others."""
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
    refuse_download("torchvision", name, kwargs, path)
    arguments = {key: value for key, value in kwargs.items() if key not in ("weights", "weights_backbone")}
    if name in ("inception_v3", "googlenet"):
        arguments.setdefault("init_weights", True)
    try:
        if name in detectors:
            return build_detector(name, arguments, None)
        return torchvision.models.get_model(name, weights=None, **arguments)  # type: ignore[no-any-return]
    except TypeError as error:
        raise _unknown_argument(error, f"torchvision.{name}", _torchvision_arguments(name), path) from error


def refuse_download(library: str, name: str, kwargs: Mapping[str, Any], path: SpecPath) -> None:
    """Raise SpecError KD558 where kwargs ask for published weights, with the line that names them instead.

    To build a network fetches nothing: not in `validate`, not before a run goes on from a checkpoint.
    """
    key = next((one for one in ("weights", "weights_backbone", "pretrained") if kwargs.get(one)), None)
    if key is None:
        return
    place = (*path, "kwargs", key)
    asked = "DEFAULT" if key == "weights_backbone" else kwargs[key]
    published = f"timm:{name}" if library == "timm" else f"torchvision:{_weights(name, asked, place)}"
    beside = "saver.pretrain_model"
    line = f"saver: {{pretrain_model: {published}}}"
    if path[:1] == ("teachers",):
        beside = "teacher_weight"
        line = f"{path[1]}: {{mimic_name: [...], teacher_weight: {published}}}"
    of_detector = ", the whole detector's" if key == "weights_backbone" else ""
    raise SpecError.at(
        place,
        "KD558",
        f"a network is built with random weights, and `{key}` would fetch others: they are named by `{beside}`",
        f"delete `{key}`, and say `{line}`{of_detector}{_about_classes(kwargs, path)}",
        on_key=True,
    )


def _about_classes(kwargs: Mapping[str, Any], path: SpecPath) -> str:
    """What becomes of the published classifier where the spec asks for another number of classes."""
    count = kwargs.get("num_classes")
    if not isinstance(count, int) or count in (0, 1000):
        return ""
    if path[:1] == ("teachers",):
        return f"; with `num_classes: {count}` the network isn't the one that was trained: leave it out"
    return f"; the last layer is made anew for `num_classes: {count}`"


def _weights(name: str, given: Any, place: SpecPath) -> str:
    """The name of the torchvision weights that the user asked for; raises SpecError KD412."""
    if given is True:
        given = "DEFAULT"
    choices = torchvision.models.get_model_weights(name)
    known = [*choices.__members__, "DEFAULT"]
    word = str(given).rsplit(".", 1)[-1]
    if word not in known:
        raise SpecError.at(
            place,
            "KD412",
            f"torchvision has no weights `{given}` for `{name}`",
            did_you_mean(word, known),
        )
    return str(choices.DEFAULT if word == "DEFAULT" else choices[word])


def _torchvision_arguments(name: str) -> list[str]:
    """What the model's class takes that the name leaves open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, weights=None)
    taken = inspect.signature(type(model).__init__).parameters.values()
    return [*(p.name for p in taken if p.kind is not p.VAR_KEYWORD and p.default is not p.empty)]


def build_timm(name: str, kwargs: Mapping[str, Any], path: SpecPath) -> nn.Module:
    """A classifier of timm with random weights; raises SpecError KD558 where kwargs say `pretrained: true`."""
    if name.startswith(HUB_PREFIXES):
        raise SpecError.at(
            (*path, "type"),
            "KD557",
            f"`timm.{name}` is a repository of a hub, and no network that timm builds by name",
            "name timm's network, as `timm.vit_small_patch16_224`, and its weights as `hf:` and the repository",
        )
    try:
        import timm
    except ImportError as error:
        raise SpecError.at(
            (*path, "type"), "KD415", "timm is not installed", "install it: `pip install 'kdcli[timm]'`"
        ) from error
    base = name.split(".")[0]
    if kwargs.get("pretrained_cfg") or kwargs.get("pretrained_cfg_overlay") or kwargs.get("checkpoint_path"):
        key = next(
            k for k in ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path") if kwargs.get(k)
        )
        raise SpecError.at(
            (*path, "kwargs", key),
            "KD558",
            f"a network is built with random weights, and `{key}` is about others: they are named elsewhere",
            "say `teacher_weight` beside a teacher's `mimic_name`, or `saver.pretrain_model`",
            on_key=True,
        )
    if not timm.is_model(base):
        raise SpecError.at(
            (*path, "type"), "KD401", f"timm has no model `{base}`", did_you_mean(base, timm.list_models())
        )
    refuse_download("timm", name, kwargs, path)
    try:
        model = timm.create_model(name, **{**kwargs, "pretrained": False})
    except TypeError as error:
        taken = ["num_classes", "in_chans", "drop_rate", "drop_path_rate"]
        raise _unknown_argument(error, f"timm.{name}", taken, path) from error
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
