"""A spec as Python holds it: from a file, or from a mapping, with changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from kdcli.errors import UsageError
from kdcli.spec.parse import Dumper, ParsedSpec, parse, read
from kdcli.spec.text.overrides import parse_assignment


@dataclass(frozen=True, slots=True)
class Spec:
    """A spec that is not parsed yet: a YAML file, or a mapping in the spec's language, with changes.

    Make one with `from_file` or `from_dict`; every function of `kdcli` that takes a spec takes a path or a mapping
    too, so that a Spec is needed only for changes and names.

        spec = kdcli.Spec.from_file("cfg.yaml", "trainer.max_epoch=2")
        kdcli.train(spec.changed("runtime.random_seed=2"))
    """

    path: Path | None = None
    text: str | None = None
    name: str = "spec"
    changes: tuple[str, ...] = ()

    @classmethod
    def from_file(cls, path: str | PurePath, *changes: str) -> Spec:
        """The spec of a YAML file. changes: `key.path=value`, as on the command line.

        Files that it names are looked up beside it, then in the working directory. It is read when it is used.
        """
        return cls(path=Path(path), name=Path(path).stem, changes=changes)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *changes: str, name: str = "spec") -> Spec:
        """The spec of a mapping with the keys of the language: {"net": ..., "mimic": ..., "dataset": ..., ...}.

        name: of the run, whose folder is runs/<name> where `saver.save_dir` says no other. changes: `key.path=value`.
        Files that it names are looked up in the working directory. Raises UsageError for a value that YAML can't say;
        give networks and data in memory to `train` as `student`, `teachers` and `data` instead.
        """
        try:
            text = yaml.dump(
                plain(data),
                Dumper=Dumper,
                sort_keys=False,
                allow_unicode=True,
                default_flow_style=None,
                width=110,
            )
        except yaml.YAMLError as error:
            value = error.args[1] if len(error.args) > 1 else error
            raise UsageError.of(
                f"a spec holds text, numbers, lists and mappings, not a `{type(value).__name__}`",
                "networks and data in memory are arguments: `train(spec, student=..., teachers=..., data=...)`",
            ) from None
        return cls(text=text, name=name, changes=changes)

    def changed(self, *changes: str) -> Spec:
        """The same spec with more changes, `key.path=value`."""
        return Spec(self.path, self.text, self.name, (*self.changes, *changes))

    def parsed(self, more: Sequence[str] = ()) -> ParsedSpec:
        """The spec read and checked by its language; raises SpecError with every finding. more: further changes."""
        assignments = (*self.changes, *more)
        if self.path is not None:
            return read(self.path, assignments)
        overrides = [parse_assignment(text, number) for number, text in enumerate(assignments, 1)]
        return parse(self.text or "", f"<{self.name}>", overrides=overrides)

    def to_yaml(self) -> str:
        """The complete spec with every default as YAML; raises SpecError."""
        return self.parsed().resolved_yaml()


Texts = str | Sequence[str]
"""One text or several, as arguments."""


def listed(texts: Texts) -> tuple[str, ...]:
    """Several texts; a single one need not be put into a list."""
    return (texts,) if isinstance(texts, str) else tuple(texts)


SpecLike = str | PurePath | Mapping[str, Any] | Spec
"""What a function that takes a spec takes: a path, a mapping, a Spec."""


def spec_of(spec: SpecLike, changes: Texts = ()) -> Spec:
    """A path, a mapping or a Spec as a Spec with changes; raises UsageError for anything else."""
    changes = listed(changes)
    if isinstance(spec, Spec):
        return spec.changed(*changes)
    if isinstance(spec, str | PurePath):
        return Spec.from_file(spec, *changes)
    if isinstance(spec, Mapping):
        return Spec.from_dict(spec, *changes)
    raise UsageError.of(
        f"a spec can't be of type `{type(spec).__name__}`",
        "give the path of a YAML file, a mapping, or a kdcli.Spec",
    )


def plain(value: Any) -> Any:
    """The value with what YAML has no word for as its plain form: paths as text, tuples as lists, numpy's numbers."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value
