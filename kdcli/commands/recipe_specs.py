"""The spec of a recipe: its sample with the networks, the images and what the weights state, in place of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.api.spec import plain
from kdcli.commands.given_networks import EXAMPLE, GivenNetwork, Pixels, with_facts
from kdcli.commands.recipes import Recipe
from kdcli.commands.sample_text import SampleText
from kdcli.commands.samples import sample_specs
from kdcli.disk import text_in
from kdcli.errors import RunError, UsageError
from kdcli.failures import doing
from kdcli.spec.published import is_published
from kdcli.waiting import say

if TYPE_CHECKING:
    from kdcli.analysis.layers import Layer
    from kdcli.commands.options import DistillOptions, InitOptions
    from kdcli.data.folders import ImageData

MOST_SIZE = 224
"""Images are resized to their own shorter side, to this where they are larger: foundation's and finetune's size."""
MOST_BOXES = 800
"""The same of images with boxes."""
PYRAMID = re.compile(r"\.p\d+_conv$|\.fpn\.layer_blocks\.\d+$")
"""The maps that a feature pyramid gives: United-Perception's and torchvision's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for: networks, data, and where the spec and its run go. teacher: None trains the student alone."""

    teacher: GivenNetwork | None
    student: GivenNetwork
    data: ImageData
    folder: Path
    out: Path
    plugins: tuple[str, ...]

    @property
    def spec(self) -> Path:
        """The file of the spec."""
        return self.out / ("teacher.yaml" if self.teacher is None else "distill.yaml")

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.out / "run"


def spec_text(request: Request, recipe: Recipe, options: DistillOptions | InitOptions) -> str:
    """The sample of the recipe with the networks, the data and what the weights state."""
    teacher, data = request.teacher, request.data
    text = SampleText(text_in(sample_specs()[recipe.sample]))
    _begin(text, request, recipe, options)
    if teacher is not None and data.labels != "none" and not teacher.finds_boxes and teacher.classes:
        _check_classes(teacher, data, options)
    count = (
        len(data.classes) if data.labels != "none" else (teacher.classes if teacher is not None else 0) or 0
    )
    if recipe.sample != "own_boxes":  # boxes are measured in float32
        text.put("runtime.random_seed", 1, beside={"precision": "auto"})
    if recipe.sample == "foundation":
        _foundation(text, request)
    elif recipe.sample == "own_boxes":
        _boxes(text, request)
    elif recipe.sample == "finetune":
        _finetune(text, request, count)
    else:
        _classifier(text, request, count)
    if request.student.weights is not None and recipe.sample != "finetune":
        text.block("saver", {"save_dir": request.run.as_posix(), "pretrain_model": request.student.weights})
    elif recipe.sample != "finetune":
        text.block("saver", {"save_dir": request.run.as_posix()})
    return str(text)


def _begin(text: SampleText, request: Request, recipe: Recipe, options: DistillOptions | InitOptions) -> None:
    words = ["kdcli", "distill", "--teacher", options.teacher or ""]
    if request.teacher is None:
        words = ["kdcli", "init", "--from"]
    words += ["--student", options.student or "", "--data", str(options.data), "--out", str(request.out)]
    lines = [
        f"Written from the sample {recipe.sample}: {recipe.why}.",
        "",
        f"  {shlex.join(words)}",
        f"  kdcli train {request.spec.as_posix()}",
        "",
        f"{request.folder}: {request.data.text}.",
        "Files are looked up beside this spec, then in the working directory.",
    ]
    text.begin(lines)


# Classes and pixels


def _check_classes(teacher: GivenNetwork, data: ImageData, options: DistillOptions | InitOptions) -> None:
    """Raise RunError KD865 where the teacher's logits are about other classes than the folders."""
    from kdcli.data.classes import listed, one_form

    own = {one_form(name) for name in data.classes}
    known = None if teacher.names is None else {one_form(name) for name in teacher.names}
    if (known is not None and own <= known) or (known is None and teacher.classes == len(data.classes)):
        return
    strange = [name for name in data.classes if known is not None and one_form(name) not in known]
    network = teacher.title
    if known is not None and len(known) == len(own):
        what = f"knows no class {listed(strange)}: its classes are {listed(tuple(teacher.names or ()))}"
    else:
        what = f"tells {teacher.classes:,} classes apart, and `{options.data}` has {len(data.classes)} class folders"
    make = shlex.join(
        ["kdcli", "init", "--from", "--student", f"{teacher.weights}@{network}", "--data", str(options.data)]
    )
    raise RunError.of(
        "KD865",
        f"the teacher `{teacher.words}` {what}",
        f"fine-tune it on these classes first: `{make}`; or mimic it without labels, on its own classes: `--no-labels`"
        if teacher.whole
        else "rename the folders as the teacher's classes are called, or train a teacher on these",
    )


def _classes_by_name(teacher: GivenNetwork, data: ImageData) -> dict[str, str] | None:
    """The entry `classes` of a teacher that knows more classes than the data has, by name; else None."""
    from kdcli.data.classes import one_form

    if teacher.names is None or data.labels == "none" or len(teacher.names) == len(data.classes):
        return None
    names = {one_form(name): name for name in teacher.names}
    return {name: names[one_form(name)] for name in data.classes}


def _own_size(data: ImageData, most: int) -> int:
    return min(data.sides[1], most)


def _pixels(request: Request, count: int) -> Pixels:
    """The pixels that the teacher's weights were trained on; where nothing states them, those it answers best on."""
    from kdcli.commands.measured_pixels import IMAGENET, measured

    teacher, data = request.teacher, request.data
    assert teacher is not None
    if teacher.pixels is not None:
        say(f"{teacher.pixels.by} states how its images were normalised" + _sized(teacher.pixels.size))
        return teacher.pixels
    size = _fixed_size(teacher) or _own_size(data, MOST_SIZE)
    if data.labels != "classes":
        say(
            f"`{teacher.weights}` doesn't state how its images were normalised: ImageNet's mean and std are taken"
        )
        return replace(IMAGENET, size=size)
    with doing("measuring how the teacher's images were normalised"):
        return measured(teacher, data, count, size, request.plugins)


def _sized(size: int | None) -> str:
    return "" if size is None else f", and their size, {size}"


# The recipes


def _module(network: GivenNetwork, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A whole model as the samples write it."""
    (module,) = network.modules
    return {"name": module.name, "type": module.type, "kwargs": {**kwargs, **module.kwargs}}


def _put_network(text: SampleText, key: str, network: GivenNetwork, kwargs: dict[str, Any]) -> None:
    """Write a network: of a whole model type and kwargs, of a list the whole list."""
    if network.whole and not network.modules[0].outputs:
        written = _module(network, kwargs)
        text.put(f"{key}.name", written["name"])
        text.put(f"{key}.type", written["type"])
        text.put(f"{key}.kwargs", written["kwargs"])
        return
    text.block(key, [plain(module.model_dump(exclude_defaults=True)) for module in network.modules])


def _class_kwargs(network: GivenNetwork) -> dict[str, Any]:
    """`num_classes` for a whole model that takes it."""
    if not network.whole:
        return {}
    (module,) = network.modules
    if ":" in module.type:
        from kdcli.spec.check.signatures import signature
        from kdcli.spec.tables import Target

        known = signature(Target(module.type, own=True))
        taken = known is not None and ("num_classes" in (*known.kwargs, *known.positional) or known.opened)
        return {"num_classes": "*num_classes"} if taken else {}
    return {} if "num_classes" in module.kwargs else {"num_classes": "*num_classes"}


def _classifier(text: SampleText, request: Request, count: int) -> None:
    """Logits of a classifier: own_images, few_images, own_photos, unlabelled_images."""
    teacher, student, data = request.teacher, request.student, request.data
    assert teacher is not None and teacher.weights is not None
    pixels = _pixels(request, count)
    text.put("num_classes", count)
    text.put("size", pixels.size or _own_size(data, MOST_SIZE))
    text.put("normalize.kwargs", {"mean": list(pixels.mean), "std": list(pixels.std)})
    _put_network(text, "teacher0", teacher, _class_kwargs(teacher))
    _put_network(text, "net", student, _class_kwargs(student))
    classes = _classes_by_name(teacher, data)
    if classes is not None and teacher.whole:
        text.put("teacher0.kwargs", {} if teacher.classes == 1000 else {"num_classes": teacher.classes})
    text.put(
        "mimic.teacher0.teacher_weight",
        teacher.weights,
        beside=None if classes is None else {"classes": classes},
    )
    _put_sides(text, request)


def _put_sides(text: SampleText, request: Request) -> None:
    """Write the folders of both sides, and how one folder is divided."""
    for name, side in (("train", request.data.train), ("test", request.data.test)):
        beside = {"split": name} if side.split else None
        text.put(f"dataset.{name}.dataset.kwargs.root", side.root.as_posix(), beside=beside)


def _finetune(text: SampleText, request: Request, count: int) -> None:
    """Published weights trained on: a teacher."""
    student = request.student
    if student.weights is None:
        library = student.title.partition(".")[0]
        known = f"{library}:DEFAULT" if library in ("timm", "torchvision") else "WEIGHTS"
        raise UsageError.of(
            f"`--student {student.words}` has no weights to fine-tune, and there is no teacher",
            f"name weights, `--student {known}@{student.words}`, or a teacher, `--teacher {EXAMPLE}`",
        )
    text.put("x-classes", count)
    _put_network(text, "net", student, _class_kwargs(student))
    text.put("saver.pretrain_model", student.weights, beside={"save_dir": request.run.as_posix()})
    facts = with_facts(student, request.plugins)
    if facts.pixels is not None:
        if facts.pixels.size is not None:
            text.put("x-size", min(facts.pixels.size, MOST_SIZE))
        text.put(
            "dataset.train.dataset.kwargs.transformer.3.kwargs",
            {"mean": list(facts.pixels.mean), "std": list(facts.pixels.std)},
        )
    _put_sides(text, request)


def _foundation(text: SampleText, request: Request) -> None:
    """Features of a teacher without a classifier; labels, where there are any, tell what they are worth."""
    teacher, student, data = request.teacher, request.student, request.data
    assert teacher is not None and teacher.weights is not None
    if not (teacher.whole and student.whole):
        raise RunError.of(
            "KD866",
            "features are mimicked of whole networks of timm, torchvision or your own",
            "see `kdcli init`",
        )
    stated = _fixed_size(teacher) if teacher.pixels is None else teacher.pixels.size
    if stated is not None and (stated < MOST_SIZE or teacher.pixels is None):
        text.put("x-size", stated)
    size = int(re.search(r"^x-size: &size (\d+)", str(text), re.MULTILINE)[1])  # type: ignore[index]
    text.text = re.sub(r"^teacher0: #.*", "teacher0:", text.text, flags=re.MULTILINE)
    written = [_headless(one, size) for one in (student, teacher)]
    for key, one in zip(("net", "teacher0"), written, strict=True):
        text.put(f"{key}.type", one["type"])
        text.put(f"{key}.kwargs", one["kwargs"])
    pixels = teacher.pixels
    if pixels is not None:
        text.put(
            "dataset.train.dataset.kwargs.transformer.3.kwargs",
            {"mean": list(pixels.mean), "std": list(pixels.std)},
        )
    networks = [
        replace(
            network, modules=(network.modules[0].model_copy(update={"kwargs": _sized_kwargs(one, size)}),)
        )
        for network, one in zip((student, teacher), written, strict=True)
    ]
    ours, others = _last_maps(networks[0], networks[1], size, request.plugins)
    text.put("mimic.teacher0.teacher_weight", teacher.weights)
    text.put("mimic.student.mimic_name", ours)
    text.put("mimic.teacher0.mimic_name", others)
    _put_sides(text, request)
    if data.labels == "classes":
        text.uncomment("probe")
        for name, side in (("train", data.train), ("test", data.test)):
            beside = ", split: " + name if side.split else ""
            text.text = text.text.replace(
                f"root: images/{name}, transformer: *plain",
                f"root: {side.root.as_posix()}{beside}, transformer: *plain",
            )


def _headless(network: GivenNetwork, size: int) -> dict[str, Any]:
    """A whole model without a classifier, where it can be built so."""
    (module,) = network.modules
    if not module.type.startswith("timm."):
        return _module(network, {})
    from timm.models import get_pretrained_cfg

    config: Any = get_pretrained_cfg(module.type.removeprefix("timm."))
    fixed = config is not None and config.fixed_input_size and config.input_size[-1] != size
    return _module(network, {**({"img_size": "*size"} if fixed else {}), "num_classes": 0})


def _fixed_size(network: GivenNetwork) -> int | None:
    """The only size of images that a network of timm reads, as it is made without `img_size`."""
    (module, *others) = network.modules
    if others or not module.type.startswith("timm.") or "img_size" in module.kwargs:
        return None
    from timm.models import get_pretrained_cfg

    config: Any = get_pretrained_cfg(module.type.removeprefix("timm."))
    return int(config.input_size[-1]) if config is not None and config.fixed_input_size else None


def _sized_kwargs(written: dict[str, Any], size: int) -> dict[str, Any]:
    return {key: size if value == "*size" else value for key, value in written["kwargs"].items()}


def _boxes(text: SampleText, request: Request) -> None:
    """Maps of a detector's feature pyramid."""
    teacher, student, data = request.teacher, request.student, request.data
    assert teacher is not None and teacher.weights is not None
    assert data.train.annotations is not None and data.test.annotations is not None
    if not student.finds_boxes:
        raise RunError.of(
            "KD866",
            f"the student `{student.words}` finds no boxes",
            "name a detector of torchvision, such as torchvision.fasterrcnn_mobilenet_v3_large_fpn, or a spec whose"
            " `net` is one",
        )
    if is_published(teacher.weights) and teacher.classes != len(data.classes) + 1:
        raise RunError.of(
            "KD865",
            f"the teacher `{teacher.words}` tells {teacher.classes} classes apart, the background among them, and"
            f" `{request.folder}` has {len(data.classes)} categories",
            "train a detector on these images first, by a spec of runner `base` (scenes_teacher.yaml is one), and name"
            " its run folder",
        )
    size = _own_size(data, MOST_BOXES)
    text.put("num_classes", len(data.classes) + 1)
    text.put("size", size)
    pixels = teacher.pixels
    if pixels is not None:
        text.put("normalize.kwargs", {"mean": list(pixels.mean), "std": list(pixels.std)})
    if teacher.aligned is not None:
        text.put("runtime.aligned", teacher.aligned)
    _put_network(text, "teacher0", teacher, _class_kwargs(teacher))
    _put_network(text, "net", student, _class_kwargs(student))
    with doing("looking for maps of student and teacher that fit"):
        ours, others = _pyramids(*_layers(student, teacher, (3, 128, 128), request.plugins))
    text.put("mimic.teacher0.teacher_weight", teacher.weights)
    text.put("mimic.student.mimic_name", ours)
    text.put("mimic.teacher0.mimic_name", others)
    for name, side in (("train", data.train), ("test", data.test)):
        where = f"dataset.{name}.dataset.kwargs"
        assert side.annotations is not None
        text.put(f"{where}.meta_file", side.annotations.as_posix())
        text.put(f"{where}.image_reader.kwargs.image_dir", side.root.as_posix())
    assert data.test.annotations is not None
    text.put("dataset.test.dataset.kwargs.evaluator.kwargs.gt_file", data.test.annotations.as_posix())


# Layers


def _layers(
    student: GivenNetwork, teacher: GivenNetwork, size: tuple[int, int, int], plugins: Sequence[str]
) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """The layers of both networks."""
    import yaml

    from kdcli.analysis.layers import inspect
    from kdcli.spec.networks import parse_networks

    content = {
        key: [plain(one.model_dump(exclude_defaults=True)) for one in network.modules]
        for key, network in (("net", student), ("teacher0", teacher))
    }
    task = {"task_names": "kd_det" if teacher.finds_boxes else "kd_cls"}
    parsed = parse_networks(yaml.safe_dump({"runtime": task, **content}, sort_keys=False), "the networks")
    found = inspect(parsed, size=size, plugins=plugins)
    return found["net"], found["teacher0"]


def _pyramids(student: Sequence[Layer], teacher: Sequence[Layer]) -> tuple[list[str], list[str]]:
    """The maps of both feature pyramids that have one size, else the pairs that fit at all; raises RunError KD866."""
    from kdcli.analysis.pairs import fitting_pairs

    ours, others = _by_size(student), _by_size(teacher)
    common = [size for size in ours if size in others]
    if common:
        return [ours[size] for size in common], [others[size] for size in common]
    pairs = fitting_pairs(student, teacher)
    if not pairs:
        raise _nothing_fits()
    return [pair.student.path for pair in pairs], [pair.teacher.path for pair in pairs]


def _by_size(layers: Sequence[Layer]) -> dict[tuple[int, ...], str]:
    """The last map of a feature pyramid of each height and width."""
    found: dict[tuple[int, ...], str] = {}
    for layer in layers:
        if PYRAMID.search(f".{layer.path}") and layer.status == "once" and layer.sizes:
            found[layer.sizes[0][2:]] = layer.path
    return found


def _last_maps(
    student: GivenNetwork, teacher: GivenNetwork, size: int, plugins: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What `foundation` mimics: the last maps or patches, and the vectors beside them where both networks have one."""
    from kdcli.analysis.pairs import fitting_pairs

    with doing("looking for layers of student and teacher that fit"):
        ours, others = _layers(student, teacher, (3, size, size), plugins)
    pairs = fitting_pairs(ours, others)
    maps = [
        layer for layer in ours if layer.status == "once" and layer.layouts and layer.layouts[0].kind == "map"
    ]
    norm = next((one for one in others if one.path in ("norm", "model.norm") and one.layouts), None)
    headless = student.modules[0].headless
    if norm is not None and norm.layouts[0].kind == "tokens" and (pairs or maps):
        last = pairs[-1].student.path if pairs else maps[-1].path
        prefix = norm.layouts[0].prefix
        vectors = headless and bool(prefix)
        return [last, *(["pooled"] if vectors else [])], [
            "norm:patches" if prefix else "norm",
            *(["norm:class"] if vectors else []),
        ]
    if not pairs:
        raise _nothing_fits()
    vectors = headless and teacher.modules[0].headless
    beside = ["pooled"] if vectors else []
    return [pairs[-1].student.path, *beside], [pairs[-1].teacher.path, *beside]


def _nothing_fits() -> RunError:
    return RunError.of(
        "KD866",
        "no layers of student and teacher fit each other",
        "write the spec by hand: `kdcli inspect-features` shows the layers of both",
    )
