"""The run folder: its files, which run may use it, and what is written there to open the run again."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kdcli.disk import (
    TEMPORARY,
    beginning_of,
    disk_error,
    entries,
    entries_like,
    exists,
    is_file,
    is_folder,
    is_link,
    real_path,
    size_of,
    sweep_temporary,
    text_in,
    write_whole,
    writing,
)
from kdcli.errors import Diagnostic, RunError, SpecError, SpecPath
from kdcli.parallel.distributed import Processes
from kdcli.records import RUN_FORMAT, Finished
from kdcli.spec.parse import ParsedSpec, parse
from kdcli.spec.places import Taken, TakenWeights, taken_from, weights_from
from kdcli.spec.plugins import may_import, not_a_plugin, own_code, package_of
from kdcli.spec.schema import Spec
from kdcli.training.checkpoint import checkpoints
from kdcli.training.claim import LOCK, Claim
from kdcli.training.environment import environment_of
from kdcli.training.run import Run, RunOptions

EXPORTED = "exports.json"
"""Names the files that `kdcli export` has put into the folder."""

DATA = "data.json"
"""What was true of the data that the run was trained on: samples and class names, in the order of their numbers."""

PROVED = "proved.json"
"""Of which spec, data and versions the run has been proved, so that a resume need not prove it again."""

SAMPLES = "data_{side}_{digest}.tsv.gz"
"""The list of one side's samples, under the first 16 digits of its SHA-256 (kdcli.data.digest)."""

NAMED = 3
"""How many files of a folder that is no run's are named."""

TENSORBOARD = "tensorboard"
"""Where the TensorBoard logger writes."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run: spec.yaml, spec.resolved.yaml, env.json, train.log, metrics.jsonl, checkpoints/,
    student.safetensors, student_best.safetensors, finished.json.

    results: a second place for the figures at the end. claim: of the process that trains here, on the one that
    writes.
    """

    root: Path
    results: Path | None = None
    claim: Claim | None = field(default=None, compare=False, repr=False)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file of metrics: one JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """The file with what was on the screen, as plain lines."""
        return self.root / "train.log"

    @property
    def student(self) -> Path:
        """The weights of the student at the end."""
        return self.root / "student.safetensors"

    @property
    def best_student(self) -> Path:
        """The weights of the student at its best evaluation."""
        return self.root / "student_best.safetensors"

    @property
    def finished(self) -> Path:
        """The file that exists once the run has ended."""
        return self.root / "finished.json"

    def check_claim(self) -> None:
        """Raise RunError KD772, KD773 where the folder is gone or another run's; before each write."""
        if self.claim is not None:
            self.claim.check()

    def close(self, finished: Finished) -> None:
        """Mark the run as finished, with its results."""
        figures = {
            "step": finished.step,
            "last": finished.last,
            "best": finished.best,
            "teachers": finished.teachers,
        }
        text = json.dumps(figures, indent=2) + "\n"
        for path in (self.results, self.finished):
            if path is not None:
                write_whole(path, text)

    def reopen(self) -> None:
        """Mark the run as not finished: it goes on."""
        with writing(self.finished):
            self.finished.unlink(missing_ok=True)

    def samples(self, side: str, digest: str) -> Path:
        """The file that lists one side's samples. digest: its SHA-256, in hex digits."""
        return self.root / SAMPLES.format(side=side, digest=digest[:16])

    def own_files(self) -> list[Path]:
        """Every file that kdcli itself writes here."""
        names = ["spec.yaml", "spec.resolved.yaml", "env.json", DATA, PROVED]
        names += ["report.html", "report_data.json", "loggers.json", *self.exports(), EXPORTED]
        return [
            *(self.root / name for name in names),
            self.metrics,
            self.log,
            self.student,
            self.best_student,
            self.finished,
            self.root / "bad_samples.jsonl",
            *entries_like(self.root, "replay_*.pt"),
            *entries_like(self.root, "probe_*_t[re]*.safetensors"),
            *entries_like(self.root, SAMPLES.format(side="t[re]*", digest="[0-9a-f]" * 16)),
            *entries_like(self.root / TENSORBOARD, "events.out.tfevents.*"),
        ]

    def exports(self) -> list[str]:
        """The files that `kdcli export` has written here."""
        try:
            recorded = json.loads((self.root / EXPORTED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        names = recorded if isinstance(recorded, list) else []
        return [
            name
            for name in names
            if isinstance(name, str) and Path(name).name == name and is_file(self.root / name)
        ]

    def remember_export(self, path: Path) -> None:
        """Record an exported file as this run's own, if it lies in this folder."""
        if real_path(path).parent == real_path(self.root):
            text = json.dumps(sorted({*self.exports(), path.name})) + "\n"
            write_whole(self.root / EXPORTED, text)


def refuse_foreign(root: Path) -> None:
    """Raise RunError for a folder that a run may not write into: a link (KD743), no run's (KD771) ..."""
    _refuse_links(root)
    _refuse_strangers(root)


def _refuse_links(root: Path) -> None:
    """Raise RunError KD743 where the folder, or anything in it or in its checkpoints, is a symbolic link."""
    folders = [folder for folder in (root, root / "checkpoints") if is_folder(folder)]
    below = (path for folder in folders for path in entries(folder))
    link = next((path for path in (root, *below) if is_link(path)), None)
    if link is not None:
        raise RunError.of(
            "KD743",
            f"{link} is a symbolic link: what is written there would lie elsewhere",
            "remove it, or name the real folder as `saver.save_dir`",
        )


def is_run_folder(root: Path) -> bool:
    """Whether a folder bears the mark of a run: its lock, its env.json, its metrics or a checkpoint."""
    lock, env = _json_of(root / LOCK), _json_of(root / "env.json")
    return (
        (isinstance(lock, dict) and "kdcli" in lock)
        or (isinstance(env, dict) and {"kdcli", "run_format"} <= env.keys())
        or _has_records(root / "metrics.jsonl")
        or bool(checkpoints(root / "checkpoints"))
    )


def strangers(root: Path) -> list[str]:
    """What lies in a folder that is no run's; empty for a run's folder, an empty one and what kdcli left there.

    Hidden files count as nothing: no file of a run is called so but its lock.
    """
    if not is_folder(root) or is_run_folder(root):
        return []
    return [path.name for path in entries(root) if not _is_harmless(path)]


def _refuse_strangers(root: Path) -> None:
    """Raise RunError KD771 for a folder that is no run's, KD740 for a file in its place."""
    if exists(root) and not is_folder(root):
        raise disk_error(root, FileExistsError(errno.EEXIST, "it is a file"))
    names = strangers(root)
    if not names:
        return
    listed = ", ".join(f"`{name}`" for name in names[:NAMED])
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    raise RunError.of(
        "KD771",
        f"{root} is no run's folder: it holds {listed}{more}",
        "a run would mix its files with them: name a new or empty folder as `saver.save_dir`",
    )


def _is_harmless(path: Path) -> bool:
    """Whether an entry may lie in the folder of a run that has not begun to train, or of any new disk."""
    name = path.name
    if name == LOCK:
        return _size(path) == 0
    if name.startswith(".") or name in ("lost+found", "System Volume Information"):
        return True
    if name in ("metrics.jsonl", "train.log"):
        # A killed start leaves both, the first without a record.
        return is_file(path) and _size(path.with_name("metrics.jsonl")) == 0
    if name == "profile":
        return is_run_folder(path)
    pattern = _OWN_FOLDERS.get(name)
    if pattern is None or not is_folder(path):
        return False
    return all(pattern.fullmatch(entry.name) for entry in entries(path))


_OWN_FOLDERS = {
    "checkpoints": re.compile(rf"step_.*{re.escape(TEMPORARY)}"),
    "cache": re.compile(r".+-[0-9a-f]{16}"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..*"),
}
"""Folders that `kdcli cache` and a start that was killed leave, and what each may hold."""


def _has_records(path: Path) -> bool:
    """Whether the first line of metrics.jsonl is a record of a run."""
    try:
        record = json.loads(beginning_of(path, 1 << 16).partition(b"\n")[0])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"kind", "step", "total_steps", "losses", "time"} <= record.keys()


def _json_of(path: Path) -> Any:
    try:
        return json.loads(beginning_of(path, 1 << 20))
    except (OSError, ValueError, RecursionError):
        return None


def _size(path: Path) -> int:
    return size_of(path) if is_file(path) else -1


def open_folder(folder: RunFolder, *, overwrite: bool, resume: bool) -> None:
    """Check that a run may use a claimed folder, and clear it with `--overwrite`; nothing else is written yet.

    Raises RunError where a run lies there that may not be touched (KD741, KD742), and where the folder can't be
    cleared (KD740).
    """
    if overwrite:
        _clear(folder)
    elif exists(folder.finished) and not resume:
        raise RunError.of(
            "KD741",
            f"a finished run lies in {folder.root}",
            "start over with `--overwrite`, or choose another `saver.save_dir`",
        )
    elif checkpoints(folder.checkpoints) and not resume:
        raise RunError.of(
            "KD742",
            f"an unfinished run lies in {folder.root}",
            "continue it with `--resume`, or start over with `--overwrite`",
        )


def make_ready(folder: RunFolder) -> None:
    """Create the folders and delete half-written files of a killed process; raises RunError KD740."""
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        for place in (folder.root, folder.checkpoints, folder.root / "cache"):
            sweep_temporary(place)
        (folder.root / "metrics.jsonl.new").unlink(missing_ok=True)  # of kdcli 0.2, which gave it this name
    except OSError as error:
        raise disk_error(folder.root, error) from None


def has_data_facts(root: Path) -> bool:
    """Whether the run in a folder says what its data was, with class names or without."""
    return is_file(root / DATA)


def recorded_classes(root: Path) -> tuple[str, ...] | None:
    """The class names that the run in a folder was trained with; None where it has not written them."""
    try:
        names = json.loads((root / DATA).read_text(encoding="utf-8"))["train"]["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if good else None


def _clear(folder: RunFolder) -> None:
    try:
        for path in [*checkpoints(folder.checkpoints), *folder.own_files()]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(folder.root, error) from None


SPEC = "spec.resolved.yaml"
ENV = "env.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened:
    """The spec of a run folder. parsed: with `saver.save_dir` where the folder is now; spec_hash: as it ran."""

    parsed: ParsedSpec
    options: RunOptions
    folder: RunFolder
    spec_hash: str


def reopen(root: Path, *, device: str | None = None, plugins: Sequence[str] = ()) -> Reopened:
    """Read a run folder's spec; raises RunError as `env_of_run`, SpecError for a spec of another version."""
    env = env_of_run(root)
    resolved = root / SPEC
    text = text_of(resolved)
    mapping_in(text, resolved)
    taken = _taken(env, root)
    spec_dir = env.get("spec_dir")
    parsed = parse(text, str(resolved), base_dir=Path(spec_dir) if isinstance(spec_dir, str) else None)
    places = replace(parsed.places, taken=taken, published=_published(env, root))
    _require_plugins(parsed, env, plugins)
    return Reopened(
        parsed=at_root(parsed, root),
        options=RunOptions(device=device, plugins=tuple(plugins), places=places),
        folder=RunFolder(root),
        spec_hash=parsed.hash(),
    )


def _require_plugins(parsed: ParsedSpec, env: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Raise SpecError KD309 where the run's spec names code of packages that the command line does not allow."""
    missing: dict[str, Diagnostic] = {}
    recorded = env.get("plugins")
    started = [str(package) for package in recorded] if isinstance(recorded, list) else []
    for path, name in own_code(parsed.spec):
        if not may_import(name, plugins):
            missing.setdefault(package_of(name), not_a_plugin(name, "KD309", path))
    if missing:
        words = " ".join(f"`--plugin {package}`" for package in started)
        help = f"the run was started with {words}" if started else next(iter(missing.values())).help
        raise SpecError(parsed.locate(replace(found, help=help)) for found in missing.values())


def with_own_files(options: RunOptions, spec: Spec, folder: RunFolder, processes: Processes) -> RunOptions:
    """Options of a resumed run: it uses the files that it took when it was started."""
    own = checkpoints(folder.checkpoints)
    root: Path | None = None
    if isinstance(options.resume, Path) and not (own and (options.restarted or spec.saver.auto_resume)):
        root = options.resume if is_folder(options.resume) else options.resume.parent
        root = root.parent if root.name == "checkpoints" else root
    elif own and (options.resume or spec.saver.auto_resume):
        root = folder.root
    found = (files_taken(root), weights_taken(root)) if processes.speaks and root is not None else ({}, {})
    taken, published = processes.broadcast(found)
    return replace(options, places=replace(options.places, taken=taken, published=published))


def files_taken(root: Path) -> Mapping[SpecPath, Taken]:
    """The files that a run has used, by their paths in its spec; empty where its folder has no list."""
    return _taken(_env(root), root)


def weights_taken(root: Path) -> Mapping[SpecPath, TakenWeights]:
    """The published weights that a run has used, by their paths in its spec; empty where its folder has no list."""
    return _published(_env(root), root)


def _env(root: Path) -> Mapping[str, Any]:
    path = root / ENV
    return mapping_in(text_of(path), path) if exists(path) else {}


def _taken(env: Mapping[str, Any], root: Path) -> Mapping[SpecPath, Taken]:
    try:
        return taken_from(env.get("files", ()))
    except ValueError as error:
        raise RunError.of("KD752", f"{root / ENV} is broken: its `files` are no list of files") from error


def _published(env: Mapping[str, Any], root: Path) -> Mapping[SpecPath, TakenWeights]:
    try:
        return weights_from(env.get("weights", ()))
    except ValueError as error:
        raise RunError.of(
            "KD752", f"{root / ENV} is broken: its `weights` are no list of published weights"
        ) from error


def env_of_run(root: Path) -> Mapping[str, Any]:
    """The content of a run folder's env.json; empty without one.

    Raises RunError KD750 (no run), KD752 (a file is broken, half-written or not yet there), KD753 (another
    run format).
    """
    if not exists(root):
        raise RunError.of("KD750", f"there is no folder {root}")
    if not is_folder(root):
        raise RunError.of("KD750", f"{root} is a file", "name the run's folder, as in runs/digits_kd")
    if not exists(root / "metrics.jsonl") and not exists(root / SPEC):
        what = "is empty" if not any(entries(root)) else "is no run of kdcli"
        raise RunError.of("KD750", f"{root} {what}", "a run holds metrics.jsonl and spec.resolved.yaml")
    path = root / ENV
    env = mapping_in(text_of(path), path) if exists(path) else {}
    written = env.get("run_format", RUN_FORMAT)
    if written != RUN_FORMAT:
        raise RunError.of(
            "KD753",
            f"{root} has run format {written}; this kdcli reads format {RUN_FORMAT}",
            f"read it with kdcli {env.get('kdcli', 'of its own version')}",
        )
    if not exists(root / SPEC):
        raise RunError.of("KD752", f"{root} has no {SPEC}: it was interrupted while being set up")
    return env


def mapping_in(text: str, path: Path) -> Mapping[str, Any]:
    """Parse a file's text as a JSON or YAML mapping; RunError KD752 where it is none."""
    try:
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise RunError.of("KD752", f"{path} is broken or half-written") from error
    if not isinstance(value, dict):
        raise RunError.of("KD752", f"{path} is broken or half-written")
    return value


def text_of(path: Path) -> str:
    """Read a text file; RunError KD521 where it can't be read."""
    return text_in(path, errors="replace")


def at_root(parsed: ParsedSpec, root: Path) -> ParsedSpec:
    """The spec with this folder as its run folder."""
    saver = parsed.spec.saver.model_copy(update={"save_dir": str(root)})
    return replace(parsed, spec=parsed.spec.model_copy(update={"saver": saver}))


def write_facts(run: Run) -> None:
    """Write what was run, on which machine and files, and the lists of its samples.

    spec.yaml as given, spec.resolved.yaml with all defaults, env.json, data.json, proved.json if it is proved.
    """
    env = environment_of(run)
    data = {
        side: {"samples": facts.num_samples, "classes": facts.class_names}
        for side, facts in (("train", run.facts), ("test", run.test_loader.facts))
    }
    texts = {
        "spec.yaml": run.parsed.text,
        "spec.resolved.yaml": run.parsed.resolved_yaml(),
        "env.json": json.dumps(env, indent=2, ensure_ascii=False) + "\n",
        DATA: json.dumps(data, indent=2, ensure_ascii=False) + "\n",
    }
    if run.options.proof is not None:
        texts[PROVED] = json.dumps(run.options.proof, indent=2, ensure_ascii=False) + "\n"
    for name, text in texts.items():
        write_whole(run.folder.root / name, text)
    for side, digest in run.digests.items():
        path = run.folder.samples(side, digest.listing)
        if not exists(path):
            write_whole(path, digest.packed)
