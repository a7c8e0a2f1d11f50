"""Whether the tapped features are of the kind that a loss takes, and which layer gives one that is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdcli.distill.adapters import shown
from kdcli.distill.mimickers.mimicker import Setting
from kdcli.distill.taps import Tap, View, tensors_in
from kdcli.errors import Findings, SpecError, SpecPath
from kdcli.losses import loss_of

POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d)


def check_taps(
    setting: Setting, loss: str, student: Sequence[str], teacher: str | None, theirs: Sequence[str]
) -> None:
    """Refuse features that the loss does not take; raises SpecError KD451 at each `mimic_name`.

    loss: its type. student, theirs: the taps of the student and of `teacher`.
    """
    wrong = Findings()
    sides: list[tuple[str | None, View, Sequence[str], SpecPath]] = [
        (None, setting.student, student, (*setting.path, "student", "mimic_name"))
    ]
    if teacher is not None:
        path = (*setting.path, "teachers", teacher, "mimic_name")
        sides.append((teacher, setting.teachers[teacher], theirs, path))
    for whose, view, taps, path in sides:
        net = setting.student_module("") if whose is None else setting.teacher_module(whose, "")
        for index, tap in enumerate(taps):
            with wrong.part():
                for feature in tensors_in(view.features[tap]):
                    _check(setting, loss, whose, tap, feature, net, (*path, index))
    wrong.raise_errors()


def joinable(setting: Setting, teacher: str) -> str:
    """A help line where tokens or vectors can't be joined with what the other network gives: what can be."""
    sides = [("the student", setting.student_module("")), (teacher, setting.teacher_module(teacher, ""))]
    found = [(whose, _last(net, (nn.Linear,))) for whose, net in sides]
    vectors = ", ".join(f"`{linear}:in` of {whose}" for whose, linear in found if linear is not None)
    return (
        "name layers that give maps in both networks (`kdcli inspect-features` lists them), or vectors in both"
        + (f": {vectors}" if vectors else "")
    )


def _check(
    setting: Setting,
    loss: str,
    teacher: str | None,
    tap: str,
    feature: Tensor,
    net: nn.Module,
    path: SpecPath,
) -> None:
    whose = "the student" if teacher is None else teacher
    takes = loss_of(loss).takes
    found = f"`{tap}` of {whose} is {shown(feature.shape)}"
    if takes == "logits" and feature.dim() != 2:
        raise SpecError.at(path, "KD451", f"`{loss}` compares logits [B, K]; {found}", "name `logits`")
    if takes == "vector" and feature.dim() > 2 and feature[0].numel() != feature.shape[1]:
        raise SpecError.at(
            path, "KD451", f"`{loss}` takes a pooled vector [B, D]; {found}", _pooled_vector(net)
        )
    if takes == "map" and feature.dim() != 4:
        raise SpecError.at(path, "KD451", f"`{loss}` takes maps [B, C, H, W]; {found}", _last_map(net))
    if takes == "tokens" and feature.dim() != 3:
        raise SpecError.at(
            path, "KD451", f"`{loss}` takes tokens [B, N, D]; {found}", "name a block of a transformer"
        )
    if loss_of(loss).before_relu:
        relu = setting.maker(teacher, tap, (nn.ReLU, nn.ReLU6, nn.LeakyReLU))
        if relu is not None:
            raise SpecError.at(
                path,
                "KD451",
                f"`{loss}` takes what goes into a ReLU; `{tap}` of {whose} is what comes out of one",
                f"name `{Tap.parse(relu).path}:in{relu.removeprefix(Tap.parse(relu).path)}`",
            )


def _pooled_vector(net: nn.Module) -> str:
    linear = _last(net, (nn.Linear,))
    if linear is not None:
        return f"name what goes into the classifier: `{linear}:in`"
    pool = _last(net, POOLS)
    return "name a layer after pooling" + (f": `{pool}`" if pool is not None else "")


def _last_map(net: nn.Module) -> str:
    pool = _last(net, POOLS)
    if pool is not None:
        return f"name a layer before pooling; the last map is `{pool}:in`"
    conv = _last(net, (nn.Conv2d,))
    return "name a convolutional layer" + (f", such as `{conv}`" if conv is not None else "")


def _last(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """The last of the modules of these kinds, in the order in which they stand."""
    names = [name for name, module in net.named_modules() if isinstance(module, kinds)]
    return names[-1] if names else None
