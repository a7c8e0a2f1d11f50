"""Includes: `!include file.yaml` and `!include file.yaml//dotted.key`, inside the spec's folder only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kdcli.disk import bytes_in, entries, is_file, real_path, size_of
from kdcli.errors import Diagnostic, RunError, Span, SpecError, did_you_mean
from kdcli.spec.text.nodes import Mapping, Node, Sequence, used_at
from kdcli.spec.text.source import MAX_BYTES, Budget, compose, decode, repeated_key


@dataclass(frozen=True, slots=True)
class Includer:
    """Reads included files.

    root: the folder that no include may leave, symbolic links resolved. folder: that of the file
    which includes, and `shown` its name as the user knows it. open: the files being read now.
    """

    root: Path
    folder: Path
    shown: str
    open: tuple[Path, ...] = ()

    def __call__(self, reference: str, use: Span, budget: Budget) -> Node:
        """The nodes that `reference` names, used at `use`; errors are raised at their places."""
        name, _, key = reference.strip().partition("//")
        path = self._file(name, use)
        shown = str(Path(self.shown).parent / name) if self.shown else name
        with _at_use(use):
            data = bytes_in(path)
        inner = Includer(self.root, path.parent, shown, (*self.open, path))
        composed = compose(decode(data, shown), shown, include=inner, budget=budget)
        findings = list(composed.findings)
        tree = composed.tree
        if isinstance(tree, Mapping):
            findings += [repeated_key(e, first) for e in tree.repeated if (first := tree.find(e.key))]
        if findings:
            raise SpecError(findings)
        if tree is None:
            raise _refused("KD114", f"`{name}` is empty", use)
        return used_at(self._part(tree, key, name, use), use)

    def _file(self, name: str, use: Span) -> Path:
        if not name:
            raise _refused("KD114", "`!include` names no file", use)
        if "\0" in name:
            raise _refused("KD114", "a file name has no NUL character", use)
        with _at_use(use):
            path = real_path(self.folder / name)
            inside = path.is_relative_to(real_path(self.root))
            there = is_file(path)
        if not inside:
            help = "an include stays in the folder of the spec: copy the file there"
            raise _refused("KD115", f"`{name}` lies outside the spec's folder", use, help)
        if not there:
            close = did_you_mean(name, _siblings(path))
            raise _refused("KD114", f"no file `{name}`", use, close)
        if path in self.open:
            chain = " -> ".join(p.name for p in (*self.open[self.open.index(path) :], path))
            raise _refused("KD116", f"files include each other: {chain}", use)
        with _at_use(use):
            size = size_of(path)
        if size > MAX_BYTES:
            raise _refused("KD109", f"`{name}` is too big for a spec", use)
        return path

    @staticmethod
    def _part(tree: Node, key: str, name: str, use: Span) -> Node:
        node = tree
        for segment in filter(None, key.split(".")):
            found: Node | None = None
            known: list[str] = []
            if isinstance(node, Mapping):
                found, known = node.get(segment), node.keys()
            elif isinstance(node, Sequence) and segment.isascii() and segment.isdigit():
                index = int(segment) if len(segment) < 9 else len(node.items)
                found = node.items[index] if index < len(node.items) else None
            if found is None:
                close = did_you_mean(segment, known)
                raise _refused("KD117", f"`{name}` has no `{segment}` (of `{key}`)", use, close)
            node = found
        return node


def _siblings(path: Path) -> list[str]:
    try:
        return [p.name for p in entries(path.parent) if p.suffix in (".yaml", ".yml")][:200]
    except RunError:
        return []


@contextmanager
def _at_use(use: Span) -> Iterator[None]:
    """Set the place of the `!include` on the error about a file that the system refuses."""
    try:
        yield
    except RunError as error:
        raise SpecError(replace(found, span=use) for found in error.diagnostics) from error


def _refused(code: str, message: str, use: Span, help: str | None = None) -> SpecError:
    return SpecError(Diagnostic(code=code, message=message, help=help, span=use))
