"""Networks and data in memory as a spec names them: the changes that put them into it, and the objects themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdcli.api.networks import (
    module_of,
    named_network,
    named_teachers,
    no_teacher,
    parts_of,
    teachers_of,
    written_weights,
)
from kdcli.api.reading import tell
from kdcli.api.spec import Spec
from kdcli.disk import is_file
from kdcli.errors import Diagnostic, SpecError, SpecPath, UsageError, did_you_mean
from kdcli.parallel.interrupts import is_first
from kdcli.spec.check.labels import is_unlabelled
from kdcli.spec.in_memory import FROM_PYTHON, InMemory, giving, is_boxes, is_given
from kdcli.spec.parse import ParsedSpec, compose_root, read_text
from kdcli.spec.schema import DataPart, DatasetKwargs, DatasetSpec
from kdcli.spec.tables import task_of
from kdcli.spec.text.nodes import Mapping as Node
from kdcli.spec.text.nodes import Scalar
from kdcli.spec.text.overrides import parse_assignment

if TYPE_CHECKING:
    from torch import nn

    from kdcli.data.facts import Labelling

SIDES = {"train": True, "test": False}

DETECTION = "det"
"""The word of `runtime.task_names` for data with boxes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Training and test data in memory, for `data=` of `train`, `validate` and `evaluate`.

    train, test: a torch Dataset of (image, label), or a DataLoader of such batches; what is None is as the spec says.
    A Dataset's images are PIL's or uint8 tensors [C, H, W], which the spec's `transformer` reads, or finished float
    tensors [C, H, W]; a DataLoader's are float tensors [B, C, H, W]. Labels are whole numbers from 0 on. Items that are
    images alone have none (`labels: none`). For a detector an item is (image, {"boxes": [n, 4], "labels": [n]}) as
    torchvision's: x1, y1, x2, y2 in pixels, labels from 1 on; `iscrowd` [n] is optional.
    classes: their names in that order, else the Dataset's own `classes`. mean, std: what float images are normalised
    by, one number a channel: a teacher with an `input` of its own, and the exported file, need to know it.
    """

    train: Any = None
    test: Any = None
    classes: Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Objects in memory, and the changes (`net=...`) that name them in a spec."""

    given: InMemory
    changes: tuple[str, ...] = ()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let what is built in the block use the objects."""
        with giving(self.given):
            yield


def objects_of(
    spec: Spec,
    student: nn.Module | None = None,
    teachers: Mapping[str, nn.Module] | nn.Module | None = None,
    data: Data | Mapping[str, Any] | None = None,
) -> Objects:
    """The arguments `student`, `teachers` and `data` of `train`, `validate` and `evaluate`, for this spec.

    Raises UsageError where an argument is none of what it may be, SpecError where an object can't be used.
    """
    if student is None and teachers is None and data is None:
        return Objects(given=InMemory())
    root = _root(spec)
    networks: dict[str, Sequence[Any]] = {}
    changes: list[str] = []
    named = {} if student is None else {"net": student}
    named |= teachers_of(teachers, root)
    left_alone: dict[str, Sequence[str]] = {}
    for name, module in named.items():
        modules, written = named_network(name, module, root)
        networks[name] = modules
        left_alone[name] = written_weights(name, root)
        changes += [*written, *(f"{key}=" for key in left_alone[name])]
    sources, written = _sources(_data(data), root)
    given = InMemory(networks=networks, data=sources, left_alone=left_alone)
    return Objects(given=given, changes=(*changes, *written))


def given_again(
    parsed: ParsedSpec,
    student: nn.Module | None = None,
    teachers: Mapping[str, nn.Module] | nn.Module | None = None,
    data: Data | Mapping[str, Any] | None = None,
) -> InMemory:
    """The objects for a run that is opened again: its spec names them already, and stays as it is.

    Raises UsageError for a network that the run's spec does not leave to Python.
    """
    networks: dict[str, Sequence[Any]] = {}
    spec = parsed.spec
    named = {} if student is None else {"net": student}
    for name, module in named_teachers(teachers, list(spec.teachers)).items():
        if name not in spec.teachers:
            raise no_teacher(name, list(spec.teachers))
        named[name] = module
    for name, module in named.items():
        if not is_given(spec.net if name == "net" else spec.teachers[name]):
            argument = "student" if name == "net" else "teachers"
            raise UsageError.of(
                f"the run's spec builds the network of `{name}` itself", f"leave it out of `{argument}`"
            )
        made = [one for _, one, _ in parts_of(module_of(name, module), "model")]
        networks[name] = made
    given = _data(data)
    sources = {
        train: _source(
            given,
            side,
            "none" if is_unlabelled(spec.dataset.train if train else spec.dataset.test) else "classes",
        )
        for side, train in SIDES.items()
        if getattr(given, side) is not None
    }
    _alike(sources)
    return InMemory(networks=networks, data=sources)


def with_data(parsed: ParsedSpec, data: Mapping[bool, Any]) -> ParsedSpec:
    """The spec of a run that is opened again, with the sides that are in memory in place of its own.

    Images that are finished (floats, batches) are not transformed once more.
    """
    dataset = parsed.spec.dataset
    for side, train in SIDES.items():
        part: DataPart = getattr(dataset, side)
        if train not in data:
            continue
        transformer = () if getattr(data[train], "finished", True) else part.dataset.kwargs.transformer
        evaluator = part.dataset.kwargs.evaluator
        if evaluator is not None and is_boxes(data[train]):  # not by the spec's file
            own = {key: value for key, value in evaluator.kwargs.items() if key != "gt_file"}
            evaluator = evaluator.model_copy(update={"kwargs": own})
        said = {"labels": "none"} if is_unlabelled(part) or has_no_labels(data[train]) else {}
        kwargs = DatasetKwargs.model_validate({"transformer": transformer, "evaluator": evaluator, **said})
        part = part.model_copy(update={"dataset": DatasetSpec(type=FROM_PYTHON, kwargs=kwargs)})
        dataset = dataset.model_copy(update={side: part})
    changed: dict[str, Any] = {"dataset": dataset}
    if any(is_boxes(source) for source in data.values()):
        words = parsed.spec.runtime.task_names or DETECTION
        changed["runtime"] = parsed.spec.runtime.model_copy(update={"task_names": words})
    return replace(parsed, spec=parsed.spec.model_copy(update=changed))


def check_given(parsed: ParsedSpec, given: InMemory) -> Iterator[Diagnostic]:
    """Findings about objects: KD873 for what the spec says and they would not follow, KD877 for bright pixels,
    KD541 for batches of the two sides whose classes differ.
    """
    from kdcli.data.classification.in_memory import BRIGHT, GivenBatches, GivenImages
    from kdcli.data.detection.in_memory import GivenBoxes

    for name, keys in given.left_alone.items():
        whose = "the student" if name == "net" else name
        for written in keys:
            told = f"{whose} starts from the weights that it was given with: `{written}` changes nothing"
            yield Diagnostic(code="KD873", severity="warning", message=told, help="take it out of the spec")
    yield from _other_task(parsed, given)
    for side, train in SIDES.items():
        source = given.data.get(train)
        part = parsed.spec.dataset.train if train else parsed.spec.dataset.test
        kwargs, path = part.dataloader.kwargs, ("dataset", side)
        whole = isinstance(source, GivenBatches)
        if not isinstance(source, GivenImages | GivenBatches | GivenBoxes):
            continue
        if not isinstance(source, GivenBatches) and not source.finished:
            continue
        if source.brightest > BRIGHT:
            message = f"the images that were given have values up to {source.brightest:.0f}, as of 0..255"
            help = "normalise them, to a few units around 0"
            where: SpecPath = (*path, "dataset")
            yield parsed.locate(
                Diagnostic(code="KD877", message=message, help=help, path=where, severity="warning")
            )
        what = "a DataLoader makes its batches itself" if whole else "float images are taken as they are"
        said: list[tuple[SpecPath, object]] = [
            (("dataset", "kwargs", "transformer"), part.dataset.kwargs.transformer),
            (("dataloader", "kwargs", "in_memory"), kwargs.in_memory),
        ]
        if whole:
            said += [
                (("dataloader", "kwargs", "batch_fn"), kwargs.batch_fn),
                (
                    ("dataloader", "kwargs", "num_workers"),
                    "num_workers" in kwargs.model_fields_set and kwargs.num_workers,
                ),
                (("batch_sampler", "kwargs", "drop_last"), part.batch_sampler.kwargs.drop_last),
            ]
        for inside, value in said:
            if value:
                key = inside[-1]
                help = f"take `{key}` out of the spec"
                if key in ("transformer", "batch_fn"):
                    help += ", or give a Dataset whose images are PIL's or uint8: the spec's are for these"
                message = f"{what}: `{key}` would change nothing"
                where = (*path, *inside)
                yield parsed.locate(
                    Diagnostic(code="KD873", message=message, help=help, path=where, on_key=True)
                )
    yield from _classes_differ(parsed, given)


def refuse_wrong(parsed: ParsedSpec, given: InMemory) -> None:
    """Raise SpecError with the findings of `check_given` where one is an error; else print its warnings."""
    found = list(check_given(parsed, given))
    if any(finding.severity == "error" for finding in found):
        raise SpecError(found)
    if is_first():
        tell(found)


def _classes_differ(parsed: ParsedSpec, given: InMemory) -> Iterator[Diagnostic]:
    """KD541 where batches of one side have other classes than the other side; items are matched by name."""
    from kdcli.data.classification.in_memory import GivenBatches

    sources = [given.data.get(train) for train in (True, False)]
    labelled = {source.names for source in sources if source is not None and is_boxes(source)}
    if len(labelled) > 1:
        message = (
            "the classes of the test data's boxes are others than the training data's, or in another order"
        )
        where: SpecPath = ("dataset", "test", "dataset")
        help = "a label is a number: bring the labels of both sides into one order of the classes"
        yield parsed.locate(Diagnostic(code="KD541", message=message, help=help, path=where))
        return
    names = [
        one.facts.class_names if isinstance(one, GivenBatches) else getattr(one, "class_names", None)
        for one in sources
    ]
    if any(isinstance(one, GivenBatches) for one in sources) and None not in names and names[0] != names[1]:
        message = "the classes of the test data are others than the training data's, or in another order"
        help = "batches have numbers alone: give both sides Datasets, which are matched by name"
        where = ("dataset", "test", "dataset")
        yield parsed.locate(Diagnostic(code="KD541", message=message, help=help, path=where))


def _other_task(parsed: ParsedSpec, given: InMemory) -> Iterator[Diagnostic]:
    """KD874 for boxes where the spec's task knows none, and for images without them where it needs them."""
    from kdcli.tasks import TASKS

    task = task_of(TASKS, parsed.spec.runtime.task_names, parsed.spec.dataset.train.dataset.type)
    needs_boxes = DETECTION in TASKS[task].words
    for side, train in SIDES.items():
        source = given.data.get(train)
        if source is None or is_boxes(source) == needs_boxes:
            continue
        what = "training" if train else "test"
        if needs_boxes:
            message = f"the task is {task}, and the {what} data that was given has no boxes"
            help = "give (image, {'boxes': ..., 'labels': ...}), or take `runtime.task_names` out"
        else:
            message = f"the {what} data that was given has boxes, and the task is {task}"
            help = f"write `runtime: {{task_names: {DETECTION}}}`, and give both sides boxes"
        where: SpecPath = ("dataset", side, "dataset")
        yield parsed.locate(Diagnostic(code="KD874", message=message, help=help, path=where))


def refuse_several(parsed: ParsedSpec, given: InMemory, processes: int) -> None:
    """Raise SpecError KD875 for a DataLoader in several processes, each of which would see all of it."""
    from kdcli.data.classification.in_memory import GivenBatches

    for side, train in SIDES.items():
        if processes > 1 and isinstance(given.data.get(train), GivenBatches):
            raise SpecError.at(
                ("dataset", side, "dataset"),
                "KD875",
                f"a DataLoader can't be shared out to {processes} processes: each would train on all its batches",
                "give its Dataset: kdcli shares the items out and shuffles them itself",
            ).located(parsed.locate)


def _root(spec: Spec) -> Node:
    """The spec's raw nodes, with its own changes; an empty mapping where it can't be read, which parsing tells."""
    overrides = [parse_assignment(text, number) for number, text in enumerate(spec.changes, 1)]
    if spec.path is not None:
        if not is_file(spec.path):
            raise UsageError.of(f"there is no spec `{spec.path}`")
        text, source, folder = read_text(spec.path)
        return compose_root(text, source, overrides=overrides, base_dir=folder)
    return compose_root(spec.text or "", f"<{spec.name}>", overrides=overrides, base_dir=None)


def _data(data: Any) -> Data:
    """The argument `data` as a Data; raises UsageError."""
    if data is None or isinstance(data, Data):
        return data or Data()
    if isinstance(data, Mapping):
        known = list(Data.__dataclass_fields__)
        for key in data:
            if key not in known:
                raise UsageError.of(f"`data` has no `{key}`", did_you_mean(str(key), known))
        return Data(**data)
    if isinstance(data, tuple | list) and len(data) == 2:
        return Data(train=data[0], test=data[1])
    raise UsageError.of(
        f"`data` is a `{type(data).__name__}`",
        "give {'train': ..., 'test': ...} with a Dataset or a DataLoader each, or a kdcli.Data with its classes",
    )


def _source(data: Data, side: str, labels: Labelling = "classes") -> Any:
    """The source of one side in memory. labels: `none` where the spec says so."""
    from kdcli.data.classification.in_memory import source_of
    from kdcli.data.detection.in_memory import GivenBoxes, has_boxes
    from kdcli.data.transforms.pipeline import generators_kept

    given, boxes = getattr(data, side), False
    with suppress(Exception), generators_kept():  # what is wrong with an item is told below
        boxes = hasattr(given, "__getitem__") and len(given) > 0 and has_boxes(given[0])
    if boxes:
        return GivenBoxes(given, side, data.classes, data.mean, data.std)
    return source_of(given, side, data.classes, data.mean, data.std, labels=labels)


def has_no_labels(source: Any) -> bool:
    """Whether data in memory is images alone."""
    from kdcli.data.classification.in_memory import GivenBatches, GivenImages

    if isinstance(source, GivenBatches):
        return source.facts.labels == "none"
    return isinstance(source, GivenImages) and source.labels is None


def _sources(data: Data, root: Node) -> tuple[dict[bool, Any], list[str]]:
    """The sources of the sides in memory, and the changes that name them in the spec."""
    from kdcli.data.classification.in_memory import GivenBatches

    sources: dict[bool, Any] = {}
    changes: list[str] = []
    for side, train in SIDES.items():
        if getattr(data, side) is None:
            continue
        dataset = _below(root, "dataset", side, "dataset", "kwargs")
        keys = dataset.keys() if isinstance(dataset, Node) else ()
        place = f"dataset.{side}"
        changes.append(f"{place}.dataset.type={FROM_PYTHON}")
        said = dataset.get("labels") if isinstance(dataset, Node) else None
        ignored = isinstance(said, Scalar) and said.value == "none"
        sources[train] = source = _source(data, side, "none" if ignored else "classes")
        if not getattr(source, "finished", True):
            _refuse_reading(dataset, side, source)
        # What the spec says of its own files says nothing of these images.
        kept = ("transformer", "evaluator", "labels")
        if has_no_labels(source) and not ignored:
            changes.append(f"{place}.dataset.kwargs.labels=none")
        if is_boxes(source):
            changes += _for_boxes(root, dataset, place)
        changes += [f"{place}.dataset.kwargs.{key}=" for key in keys if key not in kept]
        if isinstance(source, GivenBatches):
            changes.append(f"{place}.batch_sampler.kwargs.batch_size={source.batch_size}")
            key = ("batch_sampler", "kwargs", "batch_size")
            size = _below(root, "dataset", side, *key) or _below(root, "dataset", *key)
            if train and isinstance(size, Scalar) and size.value != source.batch_size:
                source.notices += (OTHER_SIZE.format(source.batch_size, size.value),)
    _alike(sources)
    return sources, changes


OTHER_SIZE = (
    "the DataLoader of the training data has batches of {}: `batch_size: {}` of the spec changes nothing"
)


def _refuse_reading(kwargs: Any, side: str, source: Any) -> None:
    """Raise SpecError KD873 for how the spec reads files, where images in memory would not be read so."""
    for key in ("color_mode", "value_range", "background"):
        said = _below(kwargs, key) or _below(kwargs, "image_reader", "kwargs", key)
        value = said.value if isinstance(said, Scalar) else said
        if value == "GRAY":
            with suppress(Exception):  # what can't be read is told when its turn comes
                value = None if is_boxes(source) or len(source.read(0)) == 1 else value
        if said is not None and value not in ("RGB", None):
            what = "training" if side == "train" else "test"
            message = (
                f"`{key}` would change nothing of the {what} images in memory: they are read as they are"
            )
            help = f"convert them in your Dataset, and take `{key}` out of the spec"
            raise SpecError([Diagnostic(code="KD873", message=message, help=help, span=said.span)])


def _below(node: Any, *keys: str) -> Any:
    """What lies below these keys of a spec; None where it has them not."""
    for key in keys:
        node = node.get(key) if isinstance(node, Node) else None
    return node


def _alike(sources: Mapping[bool, Any]) -> None:
    """Give boxes of the two sides as many classes, where nothing names these."""
    boxes = [source for source in sources.values() if is_boxes(source)]
    for source in boxes:
        source.with_classes(max(len(one.names) for one in boxes))


def _for_boxes(root: Node, kwargs: Any, place: str) -> list[str]:
    """The changes that make a spec one of boxes in memory: its task, and no file to measure by."""
    changes: list[str] = []
    runtime = root.get("runtime")
    if not isinstance(runtime, Node) or runtime.get("task_names") is None:
        changes.append(f"runtime.task_names={DETECTION}")
    evaluator = kwargs.get("evaluator") if isinstance(kwargs, Node) else None
    own = evaluator.get("kwargs") if isinstance(evaluator, Node) else None
    if isinstance(own, Node) and own.get("gt_file") is not None:
        changes.append(f"{place}.dataset.kwargs.evaluator.kwargs.gt_file=")
    return changes
