"""Every loss computed once on a sample batch, as the first training step would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdcli.distill.mimickers.mimicker import Mimicker, StepInfo
from kdcli.distill.taps import View, tensors_in
from kdcli.distill.teacher import Teacher
from kdcli.distill.trainee import Trainee, no_scalars, refuse_left_out, refuse_writing, versions_of
from kdcli.errors import Diagnostic, KdError, SpecPath
from kdcli.failures import ONE_SAMPLE, failure, own_mistake, text_of, with_place
from kdcli.losses.parts.reduce import is_scalar, no_scalar
from kdcli.models.module import is_task_loss
from kdcli.models.torch_modes import NOT_FAKE
from kdcli.spec.schema import ModuleSpec
from kdcli.training.join_jobs import JoinedJobs, require


def check_losses(
    joined: JoinedJobs,
    teachers: Mapping[str, Teacher],
    batch: Mapping[str, Any],
    net: Sequence[ModuleSpec],
    *,
    task_loss: bool,
) -> list[Diagnostic]:
    """Findings of the losses: KD437 fails to compute, KD438 no path to the student, KD439 no scalar.

    What the student showed must have its gradients. Teachers run as far as training needs them; afterwards
    their `stopped_at` says how far.
    """
    trainee = joined.trainee
    trainee.train()
    running = require(joined, teachers, None, task_loss)
    views = {name: teachers[name].view(batch) for name in running}
    student = joined.student_view
    found = list(_prepared(joined, views, batch))
    if found:
        return found
    if task_loss and not any(is_task_loss(name) for name in student.outputs):
        found.append(_no_task_loss(net, distils=bool(joined.jobs)))
    found += no_scalars(student.outputs) if task_loss else ()
    for job in joined.jobs:
        found += _job(trainee, job, student, views, batch)
    return found


def _prepared(
    joined: JoinedJobs, views: Mapping[str, View], batch: Mapping[str, Any]
) -> Iterator[Diagnostic]:
    for job, needs in joined.requirements.items():
        if needs.prepare:
            mimicker = joined.trainee.mimickers[job]
            assert isinstance(mimicker, Mimicker)
            try:
                mimicker.prepare(views, batch)
                mimicker.prepared()
            except NOT_FAKE:
                raise
            except Exception as error:
                yield from _as_diagnostics(error, ("mimic", "jobs", job), f"the preparation of `{job}`")


def _job(
    trainee: Trainee, job: str, student: View, views: Mapping[str, View], batch: Mapping[str, Any]
) -> Iterator[Diagnostic]:
    mimicker, spec = trainee.mimickers[job], trainee.specs[job]
    assert isinstance(mimicker, Mimicker)
    moves = any(
        tensor.requires_grad
        for shown in (student.features, {"logits": student.outputs.get("logits")})
        for tensor in tensors_in(shown)
    )
    for name in mimicker.losses_of(spec):
        path: SpecPath = ("mimic", "jobs", job, "losses", name)
        try:
            before = versions_of(student, *views.values())
            losses = mimicker(student, views, batch, StepInfo(), [name])
            refuse_writing(job, before)
            refuse_left_out(job, mimicker, {name}, losses)
        except NOT_FAKE:
            raise
        except Exception as error:
            yield from _as_diagnostics(error, path, f"the loss `{job}.{name}`")
            continue
        for key, loss in losses.items():
            what = f"the loss `{job}.{key}`"
            if not is_scalar(loss):
                found, help = no_scalar(loss)
                yield Diagnostic(code="KD439", message=f"{what} is no scalar: {found}", help=help, path=path)
            elif not (moves and loss.requires_grad) and mimicker.moves_student(key):
                why, help = CUT_OFF if moves else FROZEN
                message = f"{what} gives the student no gradient: {why}"
                yield Diagnostic(code="KD438", message=message, help=help, path=path)


FROZEN = ("all it reads is frozen", "name later layers of the student, or unfreeze these")
CUT_OFF = (
    "what it reads of the student has one, and is cut off from it in the loss, or not read",
    "`detach()`, `.data`, `torch.no_grad()`, `argmax` and a way through numpy cut it off",
)
"""Why a loss without a gradient has none, and what to do: where the student's features have none, and where they do."""


def refuses_one_sample(
    joined: JoinedJobs, teachers: Mapping[str, Teacher], one: Mapping[str, Any], *, task_loss: bool
) -> str | None:
    """Why a training step can't take a batch of one sample, as BatchNorm on a 1x1 map; None where it can.

    one: such a batch. What else goes wrong with it is not told: a larger batch has shown it.
    """
    trainee = joined.trainee
    trainee.train()
    running = require(joined, teachers, None, task_loss)
    try:
        view = trainee.view(one)
        views = {name: teachers[name].view(one) for name in running}
    except NOT_FAKE:
        raise
    except Exception as error:
        found = failure(error, running=True)
        return text_of(error) if found is not None and found.code == ONE_SAMPLE else None
    for job in joined.jobs:
        for finding in _job(trainee, job, view, views, one):
            if finding.code == "KD450" or "more than 1 value per channel" in finding.message:
                return finding.message
    return None


def _as_diagnostics(error: Exception, path: SpecPath, what: str) -> Iterator[Diagnostic]:
    if isinstance(error, KdError):
        for diagnostic in error.diagnostics:
            at = diagnostic.path or path
            yield Diagnostic(code=diagnostic.code, message=diagnostic.message, help=diagnostic.help, path=at)
        return
    if own_mistake(error):
        raise error
    found = failure(error, running=True)
    if found is not None and found.code == "KD496":
        message = f"{what} can't be computed: {with_place(error)}"
        yield Diagnostic(code="KD437", message=message, path=path)
        return
    reason = with_place(error)
    if isinstance(error, KeyError):
        reason = f"it reads {error.args[0]!r}, which is not there"
    yield Diagnostic(
        code="KD437",
        message=f"{what} can't be computed: {reason}",
        help=found.help
        if found is not None and found.help
        else "do the tapped layers have the shapes that the method asks for? `kdcli methods` tells",
        path=path,
    )


def _no_task_loss(net: Sequence[ModuleSpec], *, distils: bool) -> Diagnostic:
    head = next((number for number, module in enumerate(net) if module.headless), None)
    if head is not None and not distils:
        return Diagnostic(
            code="KD446",
            message="the student is made without a classifier: there is nothing that its labels could train",
            help="let `num_classes` be the number of classes",
            path=("net", head, "kwargs", "num_classes"),
        )
    return Diagnostic(
        code="KD446",
        severity="warning" if distils else "error",
        message="`net` has no loss of its own: none of its modules gives one in training",
        help="say `task_loss: false` under `mimic` where that is meant"
        if distils
        else "add a module that does (`base_cls_postprocess`)",
        path=("net",),
        on_key=True,
    )


TOO_SMALL = ("Kernel size can't be greater than actual input size", "Output size is too small")
"""torch's words where a map has become smaller than what a layer reads."""


def about_size(found: Diagnostic, height: int, width: int, *, tiny: bool) -> Diagnostic:
    """The finding with the image size in its help, where a network fails for too small feature maps.

    tiny: whether training runs it on larger images.
    """
    if found.code != "KD418" or not any(words in found.message for words in TOO_SMALL):
        return found
    what, then = "", "let the transforms make them larger, or choose another network"
    if tiny:
        what = ", at which it is checked,"
        then = "on larger ones `kdcli train` may still run it"
    help = f"images of {height}x{width}{what} may be too small for the network: {then}"
    return replace(found, help=help)


def sides_text(size: tuple[int, int] | None) -> str:
    """The size (height, width) of the images that a network is checked at, for messages; None: tiny ones."""
    return "tiny images" if size is None else f"{size[0]}x{size[1]}"
