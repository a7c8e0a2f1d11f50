"""Whether the tapped features are of the kind that a loss takes, and which layer gives one that is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from torch import nn

from kdcli.distill.adapters import shown
from kdcli.distill.mimickers.mimicker import MimicContext
from kdcli.distill.taps import Tap
from kdcli.distill.terms import TapSide
from kdcli.errors import Findings, SpecError, SpecPath
from kdcli.losses import loss_of

POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d)


def check_taps(
    setting: MimicContext,
    loss: str,
    students: Sequence[TapSide],
    teacher: str | None,
    teachers: Sequence[TapSide],
) -> None:
    """Refuse features that the loss does not take; raises SpecError KD451 at each `mimic_name`.

    loss: its type. students, teachers: the sides of its pairs, of the student and of `teacher`.
    """
    wrong = Findings()
    for whose, sides in ((None, students), (teacher, teachers)):
        net = setting.student_module("") if whose is None else setting.teacher_module(whose, "")
        part = ("student",) if whose is None else ("teachers", whose)
        for number, of_tap in groupby(sides, key=lambda side: side.number):
            with wrong.part():
                for side in of_tap:
                    _check(setting, loss, whose, side, net, (*setting.path, *part, "mimic_name", number))
    wrong.raise_errors()


def joinable(setting: MimicContext, teacher: str) -> str:
    """A help line where tokens or vectors can't be joined with what the other network gives: what can be."""
    sides = [("the student", setting.student_module("")), (teacher, setting.teacher_module(teacher, ""))]
    found = [(whose, _last(net, (nn.Linear,))) for whose, net in sides]
    vectors = ", ".join(f"`{linear}:in` of {whose}" for whose, linear in found if linear is not None)
    return (
        "name layers that give maps in both networks (`kdcli inspect-features` lists them), or vectors in both"
        + (f": {vectors}" if vectors else "")
    )


def _check(
    setting: MimicContext, loss: str, teacher: str | None, side: TapSide, net: nn.Module, path: SpecPath
) -> None:
    whose = "the student" if teacher is None else teacher
    takes, tap, kind, shape = loss_of(loss).takes, side.tap, side.layout.kind, side.shape
    found = f"`{tap}` of {whose} is {shown(shape)}"
    if takes == "logits" and kind not in ("logits", "vector"):
        raise SpecError.at(path, "KD451", f"`{loss}` compares logits [B, K]; {found}", "name `logits`")
    if takes == "vector" and len(shape) > 2 and shape[1:].numel() != shape[1]:
        raise SpecError.at(
            path, "KD451", f"`{loss}` takes a pooled vector [B, D]; {found}", _pooled_vector(net)
        )
    if takes == "map" and kind != "map":
        raise SpecError.at(path, "KD451", f"`{loss}` takes maps [B, C, H, W]; {found}", _last_map(net))
    if takes == "tokens" and kind != "tokens":
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
