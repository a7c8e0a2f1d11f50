"""What a student answers about image files: from a run, or from an exported file alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from kdcli.analysis.evaluated_networks import require_weights, student_of
from kdcli.data.preprocess import Preprocessing, preprocess_record
from kdcli.data.sources import BadSample
from kdcli.disk import asking
from kdcli.errors import RunError, UsageError
from kdcli.exports import EXPORTS, FORMATS
from kdcli.exports.export import metadata_of, portable, sample_for
from kdcli.exports.format import Answer, Format
from kdcli.models.network import build_network
from kdcli.models.weights import load_weights
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.schema import ModuleSpec
from kdcli.tasks import TASKS
from kdcli.tasks.task import Task
from kdcli.training.checkpoint import training_metadata
from kdcli.training.run import RunOptions
from kdcli.training.sides import Sides

TOGETHER = 16
"""So many images of one size are answered at once."""

NEEDED = ("inputs", "outputs", "preprocess")
"""What a file's metadata must say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is answered about one image file.

    classes: (index, name, probability), likeliest first. boxes: (index, name, score, [x1, y1, x2, y2] as edges in
    pixels of the image file), best first. vector: what a student without a trained head gives. Of the three one is
    not None, unless the file can't be read: then `error` says why. pixels: the image as it was read, uint8 [C, H, W].
    """

    image: str
    classes: tuple[tuple[int, str, float], ...] | None = None
    boxes: tuple[tuple[int, str, float, tuple[float, ...]], ...] | None = None
    vector: tuple[float, ...] | None = None
    pixels: Tensor | None = field(default=None, repr=False, compare=False)
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A student that answers about image files. source: the file that its weights come from.

    metadata: as an exported file has it. answer: from its inputs to its outputs. size: height and width, where the file
    takes no other.
    """

    source: str
    metadata: Mapping[str, str]
    answer: Answer
    preprocess: Preprocessing
    size: tuple[int, int] | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(json.loads(self.metadata["outputs"]))

    @property
    def kind(self) -> str:
        """`boxes`, `classes`, or `features` where no head was trained."""
        if "boxes" in self.outputs:
            return "boxes"
        return "classes" if "logits" in self.outputs else "features"

    def name_of(self, index: int) -> str:
        """The class of a logit or a label; its number where the file names none."""
        names = json.loads(self.metadata.get("class_names", "null")) or ()
        return str(names[index]) if index < len(names) else str(index)

    def predictions(
        self, files: Sequence[Path], *, top: int | None = None, min_score: float = 0.0
    ) -> Iterator[Prediction]:
        """What is answered about each file, in order.

        top: at most so many classes or boxes. min_score: boxes below it are left out.
        """
        waiting: list[tuple[str, Tensor, Tensor, tuple[float, float]]] = []
        for file in files:
            try:
                pixels = self.preprocess.pixels(file)
                image, scale = self.preprocess(pixels)
                image = self._on_canvas(image)
            except (BadSample, ValueError) as reason:
                yield from self._answered(waiting, top, min_score)
                waiting = []
                said = reason.reason if isinstance(reason, BadSample) else str(reason)
                yield Prediction(image=str(file), error=said)
                continue
            if waiting and (waiting[0][1].shape != image.shape or len(waiting) == TOGETHER):
                yield from self._answered(waiting, top, min_score)
                waiting = []
            waiting.append((str(file), image, pixels, scale))
        yield from self._answered(waiting, top, min_score)

    def _on_canvas(self, image: Tensor) -> Tensor:
        """The image as large as the file takes it; ValueError where it does not fit. A detector's is padded later."""
        if self.kind == "boxes":
            if self.size is not None and any(a > b for a, b in zip(image.shape[1:], self.size, strict=True)):
                raise ValueError(
                    f"it comes out as {_size(image)} and the file takes at most {self.size[0]}x{self.size[1]}: export "
                    "it again with a larger `--input-size`"
                )
        elif self.size is not None and tuple(image.shape[1:]) != self.size:
            raise ValueError(
                f"it comes out as {_size(image)} and the file takes {self.size[0]}x{self.size[1]}: the test data's "
                "transforms have to end with one size for all"
            )
        return image

    def _answered(
        self,
        waiting: Sequence[tuple[str, Tensor, Tensor, tuple[float, float]]],
        top: int | None,
        min_score: float,
    ) -> Iterator[Prediction]:
        if not waiting:
            return
        images = torch.stack([image for _, image, _, _ in waiting])
        if self.kind != "boxes":
            given = dict(zip(self.outputs, self.answer(images), strict=True))
            for row, (name, _, pixels, _) in enumerate(waiting):
                if self.kind == "classes":
                    probabilities = given["logits"][row].double().softmax(0)
                    best = probabilities.argsort(descending=True, stable=True).tolist()[:top]
                    classes = tuple((n, self.name_of(n), float(probabilities[n])) for n in best)
                    yield Prediction(image=name, pixels=pixels, classes=classes)
                else:
                    vector = tuple(given["pooled"][row].tolist())
                    yield Prediction(image=name, pixels=pixels, vector=vector)
            return
        height, width = images.shape[2:]
        alignment = self.preprocess.alignment
        canvas = self.size or (-(-height // alignment) * alignment, -(-width // alignment) * alignment)
        padded = images.new_zeros(len(images), images.shape[1], *canvas)
        padded[:, :, :height, :width] = images
        sizes = torch.tensor([[float(height), float(width)]] * len(images))
        edges, scores, labels, places = self.answer(padded, sizes)
        for row, (name, _, pixels, scale) in enumerate(waiting):
            own = places == row
            order = scores[own].argsort(descending=True, stable=True)
            boxes = self._in_the_file(edges[own][order], scale, (height, width))
            listed = [
                (int(label), self.name_of(int(label)), float(score), tuple(box))
                for label, score, box in zip(
                    labels[own][order].tolist(), scores[own][order].tolist(), boxes.tolist(), strict=True
                )
                if score >= min_score
            ]
            yield Prediction(image=name, pixels=pixels, boxes=tuple(listed[:top]))

    def _in_the_file(self, edges: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Tensor:
        """Boxes as edges in pixels of the input as edges in pixels of the image file, float64 [n, 4].

        As `eval` counts: x2 and y2 lack box_offset pixels of the input there, and gain as many of the file again.
        """
        offset = self.preprocess.box_offset
        boxes = edges.double() - edges.new_tensor([0.0, 0.0, offset, offset]).double()
        limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
        factor = boxes.new_tensor([scale[1], scale[0], scale[1], scale[0]])
        inside = torch.minimum(boxes.clamp_min(0.0), limit) / factor
        return inside + inside.new_tensor([0.0, 0.0, offset, offset])


def _size(image: Tensor) -> str:
    return "x".join(str(side) for side in image.shape[1:])


def predictor_of_run(
    parsed: ParsedSpec, options: RunOptions, weights: Path | None, key: str | None
) -> Predictor:
    """The student of a run: `weights`, else its best, else its last. Raises RunError KD719 where there is none."""
    sides = Sides(parsed.spec, options.places, plugins=options.plugins)
    task = sides.task
    if task.deploy is None:
        raise UsageError.of(f"students of the task {task.name} can't be asked about image files")
    record = preprocess_record(parsed.spec.dataset.test, aligned=parsed.spec.runtime.aligned)
    if record is None:
        raise RunError.of(
            "KD880",
            "the run's images were made in Python, and its spec says nothing of how an image becomes its input",
            "ask the student in Python, with images made as there: `kdcli.load_student(run)`",
        )
    require_weights(parsed, weights)
    sample = sample_for(sides, task.deploy, parsed, weights, None, made_up_size=(320, 320))
    contender, _ = student_of(task, parsed, options, weights, sample.batch, sample.facts, key=key)
    student = portable(parsed, task.deploy, contender, contender.net)
    metadata = metadata_of(parsed, task, contender, student, sample)
    return Predictor(
        source=str(contender.source),
        metadata=metadata,
        answer=_eager(student),
        preprocess=Preprocessing(record, options.plugins),
    )


def _eager(student: Any) -> Answer:
    def answer(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return cast("tuple[Tensor, ...]", student.eager(*inputs))

    return answer


def predictor_of_file(path: Path, plugins: Sequence[str] = ()) -> Predictor:
    """The student of an exported file, by what its metadata say of it.

    Raises RunError KD880 where these do not say enough, KD881 where it is no file that kdcli exports.
    """
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise RunError.of(
            "KD881",
            f"`{path}` is no file that `kdcli predict` reads",
            "name a run folder, or a file that `kdcli export` wrote: .safetensors, .onnx or .pt2",
        )
    bytes_in_reach(path)
    maker: Format = EXPORTS[format].load()()
    maker.check()
    metadata = metadata_in(path, format)
    lacking = [key for key in NEEDED if key not in metadata]
    if format == "safetensors":
        lacking = [key for key in ("preprocess", "net", "task") if key not in metadata]
    if lacking:
        raise RunError.of(
            "KD880",
            f"`{path}` says nothing of {_in_words(lacking)}",
            "name the run folder that it comes from, or export it again from there: an older kdcli did not write it. Of"
            " images that were made in Python nothing is known: ask that student there (`kdcli.load_student`)",
        )
    preprocess = Preprocessing(json.loads(metadata["preprocess"]), plugins)
    size: tuple[int, int] | None = None
    if format == "safetensors":
        answer, metadata = _of_weights(path, metadata, plugins)
    else:
        named = SimpleNamespace(
            inputs=json.loads(metadata["inputs"]), outputs=json.loads(metadata["outputs"])
        )
        _, height, width = json.loads(metadata["input_shape"])
        size = (height, width)
        try:
            answer = maker.read(path, cast("Any", named))
        except Exception as error:  # a damaged file makes another library raise anything
            raise _damaged(path, error) from error
    return Predictor(source=str(path), metadata=metadata, answer=answer, preprocess=preprocess, size=size)


def bytes_in_reach(path: Path) -> None:
    """Raise RunError where the file isn't there or can't be read."""
    with asking(path), path.open("rb"):
        pass


def metadata_in(path: Path, format: str) -> Mapping[str, str]:
    """What a file says of itself; raises RunError KD881 where it is damaged."""
    try:
        if format == "safetensors":
            return training_metadata(path)
        if format == "onnx":
            import onnx

            model = onnx.load(str(path), load_external_data=False)
            return {one.key: one.value for one in model.metadata_props}
        from kdcli.exports.torch_export import metadata_inside

        return metadata_inside(path)
    except Exception as error:  # as above
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return RunError.of(
        "KD881", f"`{path}` can't be read: {reason}", "is it a whole file that `kdcli export` wrote?"
    )


WORDS = {
    "preprocess": "how an image becomes its input",
    "net": "its network",
    "task": "its task",
    "inputs": "its inputs",
    "outputs": "its outputs",
}


def _in_words(keys: Sequence[str]) -> str:
    """`preprocess` and others, by what they say."""
    *most, last = [WORDS[key] for key in keys]
    return f"{', '.join(most)} and {last}" if most else last


def _of_weights(
    path: Path, metadata: Mapping[str, str], plugins: Sequence[str]
) -> tuple[Answer, Mapping[str, str]]:
    """The answer of a file of weights, whose network is built by its own metadata."""
    if metadata.get("answers") == "features" or metadata.get("kind") == "backbone":
        raise RunError.of(
            "KD880",
            f"`{path}` is of a student without a trained head: which of its layers to read, only its run says",
            "name the run folder, or export it: `kdcli export RUN --format onnx`",
        )
    modules = [ModuleSpec.model_validate(one) for one in json.loads(metadata["net"])]
    aligned = bool(json.loads(metadata.get("aligned", "true")))
    net = build_network(modules, path=("net",), plugins=plugins, aligned=aligned).eval()
    load_weights(net, path)
    task: Task = TASKS[metadata["task"]].target.load()()
    assert task.deploy is not None
    student = task.deploy.portable(net, aligned=aligned)
    return _eager(student), {**metadata, "outputs": json.dumps(student.outputs)}
