"""Weights in repositories of a model hub: looked up in the hub's own cache, fetched into it.

The hub's library says what a repository holds, and keeps the cache's layout; the bytes come through
`kdcli.models.fetching`, since that library begins a broken transfer anew.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcli.disk import asking, exists, expanded, real_path
from kdcli.errors import RunError, did_you_mean
from kdcli.models.fetching import (
    TIMEOUT_SECONDS,
    Shown,
    Wanted,
    fetched,
    is_offline,
    no_network,
    record_of,
    refuse_offline,
    sha256_of,
)
from kdcli.spec.published import Published

USUAL = ("model.safetensors", "pytorch_model.bin", "model.pth", "pytorch_model.pth")
"""Names of a repository's weights, best first: timm's and those of the hub's own libraries."""

ENDINGS = (".safetensors", ".pth", ".pt", ".bin")

CONFIG = "config.json"

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelsTrainedOn:
    """The images that weights were trained on. mean, std: on the 0..1 scale; by: who states it, in words."""

    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known of published weights without the network.

    name: with its member, tag or revision, as far as that is known. file: None where they aren't on this machine;
    place: where they lie or would lie, for a user. stated: the checksum that the name or index states.
    """

    name: Published
    file: Path | None
    place: str
    url: str | None = None
    stated: str | None = None
    pixels: PixelsTrainedOn | None = None
    licence: str | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository as the hub lists it: its key in the cache, its sha256 where the hub states that."""

    key: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Repository:
    """What the hub says of one revision of a repository."""

    commit: str
    files: dict[str, RemoteFile]
    licence: str | None


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else its own."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_cache() -> Path:
    """The folder of the hub's cache: HF_HUB_CACHE, HF_HOME/hub, else where its library has it."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return expanded(named)
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return expanded(home) / "hub"


def hub_card(name: Published) -> Card:
    """What the hub's cache on this disk knows of a repository; nothing is fetched."""
    folder, commit = _folder(name.name), _commit_here(name)
    file = None if commit is None else _weights_here(folder / "snapshots" / commit, name.file)
    place = str(folder / "snapshots" / (commit or name.revision or "<revision>") / (name.file or USUAL[0]))
    if file is None or commit is None:
        return Card(name=name, file=None, place=place)
    whole = replace(name, revision=commit, file=str(file.relative_to(folder / "snapshots" / commit)))
    pixels = pixels_in_config(_json(file.with_name(CONFIG)), f"the {CONFIG} of {name.name}")
    licence = record_of(real_path(file)).get("licence")
    return Card(name=whole, file=file, place=str(file), pixels=pixels, licence=licence)


def hub_fetch(name: Published, title: str, shown: Shown) -> tuple[Path, Card, str]:
    """Bring a repository's weights and its config into the hub's cache; returns their file, card and sha256.

    Where the network is away, or offline mode is on, what the cache holds is taken. Raises RunError KD574 where the
    hub's library isn't installed, KD572 for a repository, revision or file that there isn't or nobody may have, KD573
    where it can't be told which file is meant, and the errors of `fetching.fetched`.
    """
    here = hub_card(name)
    pinned = name.revision is not None and COMMIT.fullmatch(name.revision)
    if here.file is not None and (pinned or is_offline()):
        return here.file, here, _checked_here(here.file, title)
    refuse_offline(title, here.place)
    hub = _library()
    try:
        repository = _repository(hub, name, title, here.place)
    except RunError as error:
        if here.file is None or error.diagnostics[0].code != "KD535":
            raise
        return here.file, here, _checked_here(here.file, title)
    file = _weights_of(repository, name)
    remote = repository.files[file]
    folder, headers = _folder(name.name), dict(hub.utils.build_hf_headers())
    digest = fetched(
        Wanted(
            title=title,
            url=hub.hf_hub_url(name.name, file, revision=repository.commit, endpoint=endpoint()),
            path=folder / "blobs" / remote.key,
            sha256=remote.sha256,
            headers=headers,
            facts={} if repository.licence is None else {"licence": repository.licence},
        ),
        shown,
    )
    _place(hub, name, file, title)
    beside = str(Path(file).with_name(CONFIG))
    if beside in repository.files:
        _place(hub, name, beside, title)
    card = hub_card(replace(name, revision=repository.commit, file=file))
    assert card.file is not None
    return card.file, replace(card, licence=repository.licence or card.licence), digest


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise RunError.of(
            "KD574",
            "`hf:` and most `timm:` weights lie in a hub whose library is not installed",
            "install it: `pip install 'kdcli[hf]'`",
        ) from error
    return huggingface_hub


def _repository(hub: Any, name: Published, title: str, place: str) -> Repository:
    """What the hub says of the repository; RunError KD572, KD535."""
    with _asked(hub, name, title, place):
        info = hub.HfApi(endpoint=endpoint()).model_info(
            name.name, revision=name.revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    files = {}
    for one in info.siblings or ():
        sha256 = None if one.lfs is None else one.lfs.sha256
        files[one.rfilename] = RemoteFile(sha256 or one.blob_id or "", sha256)
    stated = None if info.card_data is None else getattr(info.card_data, "license_name", None)
    licence = stated or (None if info.card_data is None else getattr(info.card_data, "license", None))
    return Repository(info.sha, files, str(licence) if licence else None)


def _place(hub: Any, name: Published, file: str, title: str) -> None:
    """Let the hub's library put a file under its name in the cache: one that was fetched stays."""
    bars = hub.utils.are_progress_bars_disabled()
    hub.utils.disable_progress_bars()
    try:
        with _asked(hub, name, title, str(_folder(name.name))):
            hub.hf_hub_download(
                name.name, file, revision=name.revision, endpoint=endpoint(), cache_dir=hub_cache()
            )
    finally:
        if not bars:
            hub.utils.enable_progress_bars()


@contextmanager
def _asked(hub: Any, name: Published, title: str, place: str) -> Iterator[None]:
    """Turn what the hub's library raises into one error; its own log is silent meanwhile."""
    log = logging.getLogger("huggingface_hub")
    level, errors = log.level, hub.errors
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except errors.GatedRepoError as error:
        raise RunError.of(
            "KD572",
            f"the repository `{name.name}` is given only to those who accept its terms",
            f"accept them at {endpoint()}/{name.name}, then `hf auth login` or HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RunError.of(
            "KD572",
            f"there is no repository `{name.name}` at {endpoint()}, or it is private",
            "is the name right, `owner/repository`? a private one needs `hf auth login` or HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RunError.of(
            "KD572",
            f"the repository `{name.name}` has no revision `{name.revision}`",
            "a revision is a branch, a tag or a commit; leave `@...` out for its main branch",
        ) from error
    except errors.EntryNotFoundError as error:
        raise RunError.of(
            "KD572", f"the repository `{name.name}` has no such file", "look at its list of files"
        ) from error
    except (OSError, ValueError) as error:
        raise no_network(title, f"{endpoint()} gives no answer: {_reason(error)}", place) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in (
            "httpx",
            "httpx2",
            "httpcore",
            "requests",
            "hf_xet",
        ):
            raise
        raise no_network(title, f"no way to {endpoint()}: {_reason(error)}", place) from error
    finally:
        log.setLevel(level)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _weights_of(repository: Repository, name: Published) -> str:
    """The file of a repository that is meant."""
    if name.file is not None:
        if name.file in repository.files:
            return name.file
        help = did_you_mean(name.file, [f for f in repository.files if f.endswith(ENDINGS)])
        raise RunError.of("KD572", f"the repository `{name.name}` has no file `{name.file}`", help)
    usual = [file for file in USUAL if file in repository.files]
    others = [file for file in repository.files if file.endswith(ENDINGS)]
    if not usual and len(others) != 1:
        shown = ", ".join(f"`hf:{name.name}:{file}`" for file in others[:5])
        what = "several weight files" if others else f"no weight files ({', '.join(ENDINGS)})"
        help = f"say which: {shown}" if others else "is it the repository of a model?"
        raise RunError.of("KD573", f"the repository `{name.name}` has {what}", help)
    return (usual or others)[0]


def _folder(repository: str) -> Path:
    return hub_cache() / "--".join(("models", *repository.split("/")))


def _commit_here(name: Published) -> str | None:
    """The commit of a revision, as the cache knows it."""
    if name.revision is not None and COMMIT.fullmatch(name.revision):
        return name.revision
    try:
        text = (_folder(name.name) / "refs" / (name.revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return text if COMMIT.fullmatch(text) else None


def _weights_here(snapshot: Path, file: str | None) -> Path | None:
    names = [file] if file is not None else USUAL
    found = next((snapshot / name for name in names if exists(snapshot / name)), None)
    if found is None and file is None and exists(snapshot):
        with asking(snapshot):
            others = [path for path in sorted(snapshot.rglob("*")) if path.name.endswith(ENDINGS)]
        found = others[0] if len(others) == 1 else None
    return found


def _checked_here(file: Path, title: str) -> str:
    """The sha256 of a file of the cache, whose key there is that of its content; RunError KD571."""
    blob = real_path(file)
    digest = sha256_of(blob)
    stated = blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else record_of(blob).get("sha256")
    if stated is not None and digest != stated:
        raise RunError.of(
            "KD571",
            f"{title}: `{blob}` is damaged: its sha256 is {digest[:12]}..., {stated[:12]} was stated",
            "delete the file: it is fetched again",
        )
    return digest


def _of_config(config: dict[str, Any], by: str) -> PixelsTrainedOn | None:
    """The pixels that a config of timm's states."""
    size, mean, std = config.get("input_size"), config.get("mean"), config.get("std")
    if not (isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)) and len(mean) == len(std)):
        return None
    sides = [int(side) for side in size[-2:]] if isinstance(size, (list, tuple)) and len(size) == 3 else None
    return PixelsTrainedOn(
        size=None if sides is None else (sides[0], sides[1]),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        interpolation=str(config.get("interpolation") or "bicubic"),
        by=by,
    )


def pixels_in_config(config: Any, by: str) -> PixelsTrainedOn | None:
    """The pixels that a hub's config.json in timm's form states; None where it states none."""
    if not isinstance(config, dict):
        return None
    inner = config.get("pretrained_cfg", config)
    return _of_config(inner, by) if isinstance(inner, dict) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
