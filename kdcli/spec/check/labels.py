"""Data without labels (`labels: none`): what of a spec reads them all the same."""

from __future__ import annotations

from collections.abc import Iterator

from kdcli.errors import Diagnostic, SpecPath
from kdcli.spec.check.signatures import Signature
from kdcli.spec.plugins import is_own, mixes_labels
from kdcli.spec.schema import DataPart, LossSpec, Spec
from kdcli.spec.tables import Loss


def is_unlabelled(part: DataPart) -> bool:
    """Whether a side of the data says `labels: none`."""
    return (part.dataset.kwargs.model_extra or {}).get("labels") == "none"


def reads_labels(spec: Spec) -> bool:
    """Whether the task's own loss is added in any stage."""
    if spec.mimic is None or not spec.distils:
        return True
    stages = spec.mimic.stages
    said = [spec.mimic.task_loss if stage.task_loss is None else stage.task_loss for stage in stages]
    return any(said) if stages else spec.mimic.task_loss


HAS_NONE = "the training data has none (`labels: none`)"


def check_without_labels(spec: Spec) -> Iterator[Diagnostic]:
    """What reads labels where the data has none: KD240 the task's loss, KD241 the whole training, KD242 the rest."""
    test, evaluator = spec.dataset.test, spec.dataset.test.dataset.kwargs.evaluator
    if is_unlabelled(test) and evaluator is not None and not is_own(evaluator.type):
        message = (
            f"the evaluator `{evaluator.type}` needs labels, and the test data has none (`labels: none`)"
        )
        help = (
            "leave it out: images without labels are measured by what the student has learnt of its teachers"
        )
        yield _error(("dataset", "test", "dataset", "kwargs", "evaluator"), "KD242", message, help)
    train = spec.dataset.train
    if not is_unlabelled(train):
        return
    if spec.mimic is None or not spec.distils:
        if not spec.distils:
            help = "add `mimic` and a teacher (runner `kd`), or give data with labels"
            path: SpecPath = ("dataset", "train", "dataset", "kwargs", "labels")
            yield _error(
                path,
                "KD241",
                "the training data has no labels (`labels: none`), and nothing is mimicked: there is nothing to learn",
                help,
            )
        return
    wrong: list[SpecPath] = [
        ("mimic", "stages", index, "task_loss")
        for index, stage in enumerate(spec.mimic.stages)
        if stage.task_loss
    ]
    for place in [("mimic", "task_loss"), *wrong] if spec.mimic.task_loss else wrong:
        help = "write `task_loss: false`, which is the default without labels, or give data with labels"
        yield _error(place, "KD240", f"the task's own loss needs labels, and {HAS_NONE}", help)
    mixing = train.dataloader.kwargs.batch_fn
    if mixing is not None and is_own(mixing.type) and mixes_labels(mixing):
        message = f"`{mixing.type}` takes `num_classes`, so it mixes labels, and {HAS_NONE}"
        help = "leave `num_classes` out where it mixes images alone, or take batch_cutmixup"
        yield _error(("dataset", "train", "dataloader", "kwargs", "batch_fn"), "KD242", message, help)
    for name, job in spec.mimic.jobs.items():
        if job.teacher_weighting == "confidence":
            message = f"`teacher_weighting: confidence` needs labels, and {HAS_NONE}"
            yield _error(("mimic", "jobs", name, "teacher_weighting"), "KD242", message, OTHER_WEIGHTING)


OTHER_WEIGHTING = "take `entropy`, or `average`"


def check_mixed_weighting(spec: Spec) -> Iterator[Diagnostic]:
    """KD326 where a teacher's weight is to be its confidence in a label, and labels are mixed."""
    mixing = spec.dataset.train.dataloader.kwargs.batch_fn
    if (
        spec.mimic is None
        or not spec.distils
        or not mixes_labels(mixing)
        or is_unlabelled(spec.dataset.train)
    ):
        return
    assert mixing is not None
    for name, job in spec.mimic.jobs.items():
        if job.teacher_weighting == "confidence":
            message = (
                f"`teacher_weighting: confidence` needs class indices, but `{mixing.type}` mixes the labels"
            )
            help = f"{OTHER_WEIGHTING}, or take `batch_fn` out"
            yield _error(("mimic", "jobs", name, "teacher_weighting"), "KD326", message, help)


def _error(path: SpecPath, code: str, message: str, help: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, help=help, path=path)


def check_labels_of_loss(
    spec: Spec, loss: LossSpec, record: Loss, takes: Signature, path: SpecPath
) -> Iterator[Diagnostic]:
    """KD242 for a loss that needs labels where there are none, KD326 where they are mixed. path: of the loss."""
    needs = "labels" in takes.needs or "sample_labels" in takes.needs
    without = "take a loss without labels, such as kd_loss"
    if record.labels_unless is not None:
        option, value = record.labels_unless
        needs = needs and loss.kwargs.get(option) != value
        without = f"say `{option}: {value}` in its kwargs"
    required = {one.name for one in (*takes.called.values(), *takes.positional.values()) if one.required}
    if needs and is_unlabelled(spec.dataset.train) and required & {"labels", "sample_labels"}:
        message = f"`{loss.type}` needs labels, and {HAS_NONE}"
        yield _error((*path, "type"), "KD242", message, f"{without}, or give data with labels")
    batch_fn = spec.dataset.train.dataloader.kwargs.batch_fn
    if needs and mixes_labels(batch_fn) and not is_unlabelled(spec.dataset.train):
        assert batch_fn is not None
        message = f"`{loss.type}` needs class indices, but `{batch_fn.type}` mixes the labels"
        if record.labels_unless is None:
            without = "choose a loss without labels such as kd_loss"
        yield _error((*path, "type"), "KD326", message, f"take `batch_fn` out, or {without}")
