"""Where files named in a spec are: beside the file that names them, or in the working directory.

What a run writes (`save_dir`, `results_dir`, a cache's `dir`) is not looked up: it lies where it is named,
seen from the working directory. `~` is the home folder everywhere (kdcli.disk.expanded).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.disk import at_path, exists, expanded, is_folder, real_path, same, seen
from kdcli.errors import Diagnostic, RunError, Span, SpecPath, nearest
from kdcli.spec.schema import Spec
from kdcli.spec.text.overrides import is_argument

GT_FILE: SpecPath = ("dataset", "test", "dataset", "kwargs", "evaluator", "kwargs", "gt_file")
CLS_FREQ: SpecPath = (*GT_FILE[:-1], "cls_freq")
"""Where a spec names the boxes to measure by."""

TORCHVISION = "torchvision:"
"""What begins the name of published weights, which are no file."""

HOW = "a path written in a file is looked up beside that file, then in the working directory"
MOST_NAMES = 5000
"""So many names of a folder are looked at for one like the name that is missing."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The file or folder that a run used for a path of its spec. written: the path in the spec."""

    written: str
    file: Path


@dataclass(frozen=True)
class Places:
    """Looks up the files and folders that one spec names.

    folder: of the spec file; None looks in the working directory alone. elsewhere: the folders of paths that
    the spec file does not write itself, an included file's, or None for one given on the command line.
    taken: what the run took that is opened again or goes on; it wins where the spec still says the same.
    """

    folder: Path | None = None
    elsewhere: Mapping[SpecPath, Path | None] = field(default_factory=dict)
    taken: Mapping[SpecPath, Taken] = field(default_factory=dict)

    def find(self, name: str, path: SpecPath) -> Path:
        """The file or folder that the spec names at `path`; a missing one comes back as written.

        Raises SpecError at the path (RunError where that is empty) where the system refuses to say whether it is there.
        """
        before = self._before(name, path)
        with at_path(path or None):
            if before is not None and exists(before):
                return before
            tried = self.tried(name, path)
            return next((place for place in tried if exists(place)), tried[-1])

    def tried(self, name: str, path: SpecPath) -> tuple[Path, ...]:
        """Where `find` looks, in order; the last one is in the working directory."""
        with at_path(path or None):
            given = expanded(name)
        folder = self.elsewhere.get(path, self.folder)
        if folder is None or given.is_absolute():
            return (given,)
        beside = folder / given
        return (given,) if os.path.abspath(beside) == os.path.abspath(given) else (beside, given)

    def missing(self, name: str, path: SpecPath) -> str:
        """A help line for a missing file: where it was looked for, the nearest name, another place."""
        file = self.find(name, path)
        if seen(file):
            return f"`{os.path.abspath(file)}` is a {'folder' if is_folder(file) else 'file'}"
        tried = self.tried(name, path)
        hints = ["there is no " + " nor ".join(f"`{os.path.abspath(place)}`" for place in tried)]
        before = self._before(name, path)
        if before is not None and os.path.abspath(before) not in map(os.path.abspath, tried):
            hints.append(f"the run took `{before}`")
        beside = self.folder / name if self.folder is not None else None
        if beside is not None and self.elsewhere.get(path, beside) is None and seen(beside):
            hints.append(
                f"`{beside}` lies beside the spec, and a path on the command line is looked up in the "
                "working directory alone"
            )
        near = dict.fromkeys(like for place in tried for like in _names_like(place, name))
        if near:
            hints.append("did you mean " + " or ".join(f"`{like}`" for like in near) + "?")
        return "; ".join(hints)

    def findings(self, spec: Spec) -> Iterator[Diagnostic]:
        """Findings about where the spec's files were found.

        Warnings KD621 (there are two) and KD622 (the run's own is gone); the error KD304 where jobs that stand
        in several files name another file for one teacher by the same words.
        """
        for path, name in files_named(spec):
            before = self._before(name, path)
            existing = [place for place in self.tried(name, path) if seen(place)]
            if before is None:
                if len(existing) == 2 and not _same(*existing):
                    yield _two(
                        path, name, existing[0], existing[1], f"{HOW}; an absolute path leaves no choice"
                    )
            elif not seen(before):
                if existing:
                    yield _gone(path, name, before, existing[0])
            elif existing and not _same(existing[0], before):
                yield _two(path, name, before, existing[0], "the run took it when it was started")
        yield from self._teachers(spec)

    def record(self, spec: Spec) -> list[dict[str, Any]]:
        """The file used for each path, to be kept with a run; `taken_from` reads it back."""
        found = [(path, name, self.find(name, path)) for path, name in files_named(spec)]
        return [
            {"path": list(path), "written": name, "taken": str(real_path(file))}
            for path, name, file in found
            if seen(file)
        ]

    def _before(self, name: str, path: SpecPath) -> Path | None:
        """The file that the run used for the name."""
        taken = self.taken.get(path)
        return taken.file if taken is not None and taken.written == name else None

    def _teachers(self, spec: Spec) -> Iterator[Diagnostic]:
        first: dict[str, tuple[str, Path]] = {}
        for path, name in files_named(spec):
            if path[-1] != "teacher_weight":
                continue
            job, teacher, file = str(path[2]), str(path[4]), self.find(name, path)
            other_job, other = first.setdefault(teacher, (job, file))
            if seen(file) and seen(other) and not _same(file, other):
                message = f"`{teacher}` is given another `teacher_weight` than in `{other_job}`"
                both = f"`{os.path.abspath(file)}` and `{os.path.abspath(other)}`"
                help = f"they are {both}: name the file in one job alone"
                yield Diagnostic(code="KD304", message=message, help=help, path=path)


HERE = Places()
"""The working directory alone: for what the command line names."""


def files_named(spec: Spec) -> Iterator[tuple[SpecPath, str]]:
    """Every file that a spec names for reading: its path in the spec, and the name as written."""
    for key in ("pretrain_model", "resume_model"):
        yield from _paths(("saver", key), getattr(spec.saver, key))
    if spec.mimic is not None and spec.distils:
        for job_name, job in spec.mimic.jobs.items():
            for teacher, part in job.teachers.items():
                teacher_path: SpecPath = ("mimic", "jobs", job_name, "teachers", teacher)
                yield from _paths((*teacher_path, "teacher_weight"), part.teacher_weight)
    for side, data in spec.dataset.parts.items():
        kwargs_path: SpecPath = ("dataset", *side, "dataset", "kwargs")
        kwargs = data.dataset.kwargs
        for key in ("root", "meta_file"):
            yield from _paths((*kwargs_path, key), (kwargs.model_extra or {}).get(key))
        if kwargs.image_reader is not None:
            folder = kwargs.image_reader.kwargs.get("image_dir")
            yield from _paths((*kwargs_path, "image_reader", "kwargs", "image_dir"), folder)
        if kwargs.evaluator is not None and side == ("test",):
            for path in (GT_FILE, CLS_FREQ):
                yield from _paths(path, kwargs.evaluator.kwargs.get(str(path[-1])))


def places_of(spec: Spec, source: str, folder: Path | None, span: Callable[[SpecPath], Span]) -> Places:
    """The folders for the files of a spec, by the file in which each path is written.

    source, folder: the spec file's name in spans, and where it lies. span: the place of a path.
    """
    elsewhere: dict[SpecPath, Path | None] = {}
    for path, _ in files_named(spec):
        used = span(path)
        written = (used.written or used).source
        if written == source:
            continue
        if is_argument(written):
            elsewhere[path] = None
        elif folder is not None:
            elsewhere[path] = _folder_of(written, source, folder)
    return Places(folder, elsewhere)


def taken_from(record: Any) -> dict[SpecPath, Taken]:
    """Read what `Places.record` wrote; raises ValueError where it has another shape."""
    try:
        return {tuple(row["path"]): Taken(row["written"], Path(row["taken"])) for row in record}
    except (TypeError, KeyError) as error:
        raise ValueError("no record of files") from error


def _paths(place: SpecPath, value: Any) -> Iterator[tuple[SpecPath, str]]:
    """One path, or each of several; names of published weights and object stores are left out."""
    many = isinstance(value, (list, tuple))
    for index, name in enumerate(value if many else (value,)):
        if isinstance(name, str) and "://" not in name and not name.startswith(TORCHVISION):
            yield ((*place, index) if many else place), name


def _folder_of(included: str, source: str, folder: Path) -> Path:
    """The folder of an included file; its name in spans begins with the folder of the spec's."""
    beside = Path(included).parent
    try:
        return folder / beside.relative_to(Path(source).parent)
    except ValueError:
        return beside


def _names_like(place: Path, name: str) -> list[str]:
    """Names in the folder of a missing file that are close to its name, as the spec would write them."""
    try:
        with os.scandir(place.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MOST_NAMES), strict=False)]
        return [str(Path(name).with_name(like)) for like in nearest(place.name, sorted(names), most=1)]
    except (OSError, ValueError):
        return []


def _same(one: Path, other: Path) -> bool:
    try:
        return same(one, other)
    except RunError:
        return False


def _two(path: SpecPath, name: str, taken: Path, other: Path, help: str) -> Diagnostic:
    message = f"`{name}` is there twice: `{os.path.abspath(taken)}` is taken, not `{os.path.abspath(other)}`"
    return Diagnostic(code="KD621", severity="warning", message=message, help=help, path=path)


def _gone(path: SpecPath, name: str, before: Path, now: Path) -> Diagnostic:
    message = f"the run took `{before}` for `{name}`, which is gone: `{os.path.abspath(now)}` is taken"
    help = "make sure that it holds the same, or put the run's own file back"
    return Diagnostic(code="KD622", severity="warning", message=message, help=help, path=path)
