"""What a run was made with: versions, machine, command, the checked-out commit, plugins and a digest of their code.

Nothing of a repository is run: `git` itself would run what its configuration names (core.fsmonitor, filters, hooks),
and a checkout may be a stranger's. The commit is read from the files of `.git`. Whether files differ from it can't be
told without git, so what a run imports of its plugins is recorded by a digest instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import __version__
from kdcli.disk import beginning_of, real_path, seen_folder, text_in
from kdcli.errors import RunError
from kdcli.records import RUN_FORMAT
from kdcli.spec.places import Places
from kdcli.spec.plugins import may_import
from kdcli.spec.schema import Spec
from kdcli.training.checkpoint import root_of
from kdcli.training.join_jobs import weight_sources

if TYPE_CHECKING:
    from kdcli.training.run import Run

REF_BYTES = 4096
"""A file of git's that names a commit, a branch or a folder is no longer."""

PACKED_BYTES = 64 << 20

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SYMBOLIC = "ref: "


def environment_of(run: Run) -> dict[str, Any]:
    """The environment of a run, with the hashes of its teachers' weights.

    Raises RunError KD735 where a resumed run imports other code of a plugin than the run that it continues did, as far
    as its folder says.
    """
    device, options = run.processes.device, run.options
    env = environment(str(device), run.processes.world_size, options.places, run.spec, options.plugins)
    env["teachers"] = dict(run.teacher_hashes)
    env["modules"] = {package: modules_of(package) for package in options.plugins}
    if run.found_checkpoint is not None:
        _refuse_other_code(run.found_checkpoint.path, env["modules"], options.allow_changed)
    return env


def _refuse_other_code(
    checkpoint: Path, modules: Mapping[str, Mapping[str, str]], allowed: Sequence[str]
) -> None:
    try:
        before = json.loads(text_in(root_of(checkpoint) / "env.json"))["modules"]
    except (RunError, ValueError, KeyError, TypeError):
        return  # a run of before, or a checkpoint that was moved, says nothing
    for package, now in modules.items():
        was = before.get(package) if isinstance(before, dict) else None
        if not isinstance(was, dict) or {"code", f"code.{package}"} & set(allowed):
            continue
        # What one of them has not imported decides nothing.
        changed = [name for name, digest in now.items() if name in was and was[name] != digest]
        if changed:
            raise RunError.of(
                "KD735",
                f"the code of the plugin `{package}` has changed since the checkpoint was made: "
                + ", ".join(f"`{name}`" for name in changed[:3]),
                f"put it back, start over with `--overwrite`, or accept it with `--allow-changed code.{package}`",
            )


def environment(
    device: str, processes: int, places: Places, spec: Spec, plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """Versions, device, threads, the commit of the working directory, the plugins' code.

    `spec_dir`: the spec's folder. `files`: what was taken for each path of the spec; it wins when the run is
    opened again. `plugins`: the packages that were allowed, which a command that opens the run names where it
    lacks one. `weights`: the published ones that were taken. `code`: a digest of what was imported of each.
    """
    import torch

    return {
        "kdcli": __version__,
        "run_format": RUN_FORMAT,
        "spec_dir": None if places.folder is None else str(real_path(places.folder)),
        "files": places.record(spec),
        "weights": weights_taken(spec, places),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "platform": platform.platform(),
        "device": device,
        "device_name": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor(),
        "processes": processes,
        "plugins": list(plugins),
        "code": {package: code_digest(package) for package in plugins},
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "git": git_head(Path.cwd()),
    }


def weights_taken(spec: Spec, places: Places) -> list[dict[str, Any]]:
    """The published weights of a run: the name in the spec, what it meant, the sha256 of the file."""
    found = [(source, source.identity()) for source in weight_sources(spec, places).values()]
    return [
        {"path": list(source.where or ()), "written": source.name, **identity}
        for source, identity in found
        if identity is not None
    ]


def git_head(folder: Path) -> dict[str, str | None] | None:
    """Commit and branch of the git checkout that a folder lies in; None outside one, or before its first commit.

    branch: None where no branch is checked out. Only files are read, as gitrepository-layout(5) describes them.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        git = place / ".git"
        if not os.path.lexists(git):
            continue
        own = git if seen_folder(git) else _linked(_line_of(git).removeprefix("gitdir: "), place)
        if own is None or not (head := _line_of(own / "HEAD")):
            return None
        # A worktree has a HEAD of its own; its branches are those of the main one.
        shared = _linked(_line_of(own / "commondir"), own) or own
        commit = _commit_of(head, own, shared)
        if commit is None:
            return None
        branch = head.removeprefix(_SYMBOLIC).strip() if head.startswith(_SYMBOLIC) else None
        return {"commit": commit, "branch": branch and branch.removeprefix("refs/heads/")}
    return None


def _commit_of(text: str, own: Path, shared: Path) -> str | None:
    """The commit that the content of HEAD leads to, through at most a few symbolic references."""
    for _ in range(5):
        if _COMMIT.fullmatch(text):
            return text
        name = text.removeprefix(_SYMBOLIC).strip()
        if name == text or not name.startswith("refs/") or ".." in name.split("/"):
            return None
        packed = _packed(shared / "packed-refs", name)
        text = _line_of(own / name) or _line_of(shared / name) or packed or ""
    return None


def _packed(path: Path, name: str) -> str | None:
    for line in _text_of(path, PACKED_BYTES).splitlines():
        commit, _, ref = line.partition(" ")
        if ref == name:
            return commit
    return None


def _linked(text: str, folder: Path) -> Path | None:
    """The folder that a file of git's names, seen from the folder where the file lies."""
    path = folder / text
    return path if text and seen_folder(path) else None


def _line_of(path: Path) -> str:
    return _text_of(path, REF_BYTES).partition("\n")[0].strip()


def _text_of(path: Path, limit: int) -> str:
    """The content of a regular file; "" for any other, for one that is too long, and where there is none."""
    try:
        content = beginning_of(path, limit + 1)
    except (OSError, ValueError):
        return ""
    return "" if len(content) > limit else content.decode("utf-8", "replace")


def code_digest(package: str) -> str | None:
    """sha256 over the names and files of the modules of a package that this process has imported; None without any."""
    digest, empty = hashlib.sha256(), True
    for name, content in _imported(package):
        digest.update(f"{name}\0{len(content)}\0".encode("utf-8", "replace") + content)
        empty = False
    return None if empty else digest.hexdigest()


def modules_of(package: str) -> dict[str, str]:
    """The first 16 digits of each one's sha256, by name: the modules of a package that this process has imported."""
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in _imported(package)}


def _imported(package: str) -> Iterator[tuple[str, bytes]]:
    """The modules of a package that this process has imported, sorted, with the content of their files."""
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not may_import(name, [package]):
            continue
        with suppress(OSError):
            yield name, Path(file).read_bytes()
