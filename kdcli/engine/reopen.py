"""A run folder opened again: its spec as it ran, and where the files it names lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcli.engine.folder import RunFolder
from kdcli.engine.run import RunOptions
from kdcli.errors import RunError
from kdcli.spec.parse import ParsedSpec, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened:
    """parsed: with `saver.save_dir` where the folder is now. spec_hash: of the spec as it ran."""

    parsed: ParsedSpec
    options: RunOptions
    folder: RunFolder
    spec_hash: str


def reopen(root: Path, *, device: str | None = None, plugins: Sequence[str] = ()) -> Reopened:
    """Read a run folder's spec; RunError KD750 where there is no run, SpecError where its spec is broken."""
    folder = RunFolder(root)
    resolved = root / "spec.resolved.yaml"
    try:
        text = resolved.read_text(encoding="utf-8", errors="replace")
    except OSError:
        what = f"{root} is no run of kdcli" if root.exists() else f"there is no folder {root}"
        raise RunError.of("KD750", what, "a run holds metrics.jsonl and spec.resolved.yaml") from None
    base_dir = _spec_dir(root / "env.json")
    parsed = parse(text, str(resolved), base_dir=base_dir)
    return Reopened(
        parsed=at_root(parsed, root),
        options=RunOptions(device=device, plugins=tuple(plugins), base_dir=base_dir),
        folder=folder,
        spec_hash=parsed.hash(),
    )


def at_root(parsed: ParsedSpec, root: Path) -> ParsedSpec:
    """The spec with this folder as its run's."""
    saver = parsed.spec.saver.model_copy(update={"save_dir": str(root)})
    return replace(parsed, spec=parsed.spec.model_copy(update={"saver": saver}))


def _spec_dir(path: Path) -> Path | None:
    """The folder in which the run's spec lay, as env.json tells it."""
    try:
        said = json.loads(path.read_text(encoding="utf-8")).get("spec_dir")
    except (OSError, ValueError, AttributeError):
        return None
    return Path(said) if isinstance(said, str) else None
