"""Includes: `!include file.yaml` and `!include file.yaml//dotted.key`, inside the spec's folder only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcli.errors import Diagnostic, Span, SpecError, did_you_mean
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
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _refused("KD114", f"cannot read `{name}`: {error.strerror}", use) from None
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
        try:
            path = (self.folder / name).resolve()
            inside = path.is_relative_to(self.root.resolve())
        except (OSError, RuntimeError, ValueError):
            raise _refused("KD114", f"no file `{name}`", use) from None
        if not inside:
            help = "an include stays in the folder of the spec: copy the file there"
            raise _refused("KD115", f"`{name}` lies outside the spec's folder", use, help)
        if not path.is_file():
            close = did_you_mean(name, _siblings(path))
            raise _refused("KD114", f"no file `{name}`", use, close)
        if path in self.open:
            chain = " -> ".join(p.name for p in (*self.open[self.open.index(path) :], path))
            raise _refused("KD116", f"files include each other: {chain}", use)
        if path.stat().st_size > MAX_BYTES:
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
        return [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")][:200]
    except OSError:
        return []


def _refused(code: str, message: str, use: Span, help: str | None = None) -> SpecError:
    return SpecError(Diagnostic(code=code, message=message, help=help, span=use))
