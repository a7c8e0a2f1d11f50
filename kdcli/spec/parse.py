"""Specs read from text with overrides into a ParsedSpec, all findings collected, and written back as complete YAML."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from kdcli.disk import real_path, reason_of, shown_path
from kdcli.errors import Diagnostic, RunError, Span, SpecError, SpecPath, UsageError
from kdcli.spec.check.rules import check_rules
from kdcli.spec.form.canonical import TOP_KEYS, canonical
from kdcli.spec.form.typed import span_of, typed
from kdcli.spec.form.up_keys import of_other_runner
from kdcli.spec.places import Places, places_of
from kdcli.spec.ranges import without_reported_numbers
from kdcli.spec.schema import Spec
from kdcli.spec.text.include import Includer
from kdcli.spec.text.nodes import Entry, Mapping, Node, Scalar, kind
from kdcli.spec.text.nodes import Sequence as NodeSequence
from kdcli.spec.text.overrides import Override, apply, is_argument, parse_assignment
from kdcli.spec.text.source import MAX_BYTES, Composed, compose, decode
from kdcli.waiting import waiting

SOON_SECONDS = 5.0
"""A spec is read in milliseconds: what takes longer is told soon."""


@dataclass(frozen=True)
class ParsedSpec:
    """A spec with the span of everything in it.

    tree: the canonical nodes, in the shape of `spec`. base_dir: the spec's folder, None for a text
    without one. overrides: the assignments that were applied to the text.
    """

    spec: Spec
    tree: Mapping
    warnings: tuple[Diagnostic, ...]
    source: str
    text: str
    base_dir: Path | None = None
    overrides: tuple[Override, ...] = ()

    def span(self, path: SpecPath, on_key: bool = False) -> Span:
        """The span of a path; for what is not written, the nearest parent's."""
        return span_of(self.tree, path, on_key=on_key)

    def locate(self, diagnostic: Diagnostic) -> Diagnostic:
        """The diagnostic with its span filled in, where it has a path."""
        if diagnostic.span is not None or diagnostic.path is None:
            return diagnostic
        return replace(diagnostic, span=self.span(diagnostic.path, diagnostic.on_key))

    @cached_property
    def places(self) -> Places:
        """The folders in which the files that the spec names are looked up."""
        return places_of(self.spec, self.source, self.base_dir, self.span)

    def resolved_yaml(self) -> str:
        """The complete spec with defaults as YAML; parsing it gives an equal Spec, but for `sweep`."""
        return resolved_yaml(self.spec)

    def hash(self) -> str:
        """sha256 of the resolved spec."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        return spec_hash(self.spec)


def read(path_or_dash: str | Path, assignments: Sequence[str] = ()) -> ParsedSpec:
    """Read and parse a file, `-` for standard input, with `key.path=value` arguments.

    Raises SpecError with every finding, UsageError where there is no such file or assignment.
    """
    text, source, folder = read_text(path_or_dash)
    overrides = [parse_assignment(text, number) for number, text in enumerate(assignments, 1)]
    return parse(text, source, overrides=overrides, base_dir=folder)


def read_text(path_or_dash: str | Path) -> tuple[str, str, Path]:
    """The text of a spec file, its name for messages, its folder."""
    if str(path_or_dash) == "-":
        if sys.stdin is None:
            raise UsageError.of("cannot read the spec from standard input: it is closed")
        with waiting(_of_stdin, SOON_SECONDS):
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        return decode(data, "<stdin>"), "<stdin>", Path.cwd()
    path = Path(path_or_dash)
    try:
        # A pipe such as bash's `<(command)` may have a writer that says nothing, or none.
        with waiting(lambda: f"the spec from `{path}`, which is no plain file", SOON_SECONDS):
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason, help = reason_of(error)
        raise UsageError.of(f"cannot read spec `{shown_path(path)}`: {reason}", help) from None
    return decode(data, str(path)), str(path), path.parent


def _of_stdin() -> str:
    """What is waited for at standard input."""
    return (
        "the spec from the terminal (Ctrl-D ends it)"
        if sys.stdin.isatty()
        else "the spec from standard input"
    )


def parse(
    text: str,
    source: str,
    *,
    overrides: Sequence[Override] = (),
    base_dir: Path | None = None,
) -> ParsedSpec:
    """Parse a text with overrides, which are applied in order.

    base_dir: the folder that `!include` reads from and may not leave; None refuses includes.
    Raises SpecError with all findings of the first stage (syntax, schema, rules) that finds errors.
    """
    root = compose_root(text, source, overrides=overrides, base_dir=base_dir)
    tree, findings = canonical(root)
    tree = _with_save_dir(tree, source)
    spec, wrong = typed(Spec, tree)
    findings += wrong
    removed: tuple[SpecPath, ...] = ()
    if spec is None:
        spec, tree, removed = _sound(tree, wrong)
    if spec is None:
        raise_errors(findings)
        raise AssertionError("no spec, and no error")
    parsed = ParsedSpec(spec, tree, (), source, text, base_dir, tuple(overrides))
    rules = [parsed.locate(finding) for finding in check_rules(spec)]
    wrong_already = any(finding.severity == "error" for finding in findings)
    findings += [
        finding
        for finding in rules
        if not touches(finding, removed) and (finding.severity == "error" or not wrong_already)
    ]
    parsed = replace(parsed, warnings=tuple(findings))
    try:
        raise_errors(findings)
    except SpecError as error:
        error.sound = (parsed, removed)
        raise
    return parsed


def with_more(error: SpecError, check: Callable[[ParsedSpec], Iterable[Diagnostic]]) -> SpecError:
    """The error of a spec that was read, with the errors that a check finds in what is sound of it."""
    if error.sound is None:
        return error
    parsed, removed = error.sound
    wrong = {one.span for one in error.diagnostics if one.severity == "error"}
    # A number that is none makes the list that holds it wrong too.
    lines = {
        (span.source, span.line) for one in error.diagnostics if one.code == "KD223" and (span := one.span)
    }
    more = [
        one
        for one in check(parsed)
        if one.severity == "error" and one.span not in wrong and not touches(one, removed)
        if one.span is None or (one.span.source, one.span.line) not in lines
    ]
    return SpecError(in_order(without_reported_numbers(once([*error.diagnostics, *more]))))


MOST_REPAIRS = 4
"""So often wrong values are taken out of a spec to see whether the rest is sound."""


def _sound(tree: Mapping, wrong: Sequence[Diagnostic]) -> tuple[Spec | None, Mapping, tuple[SpecPath, ...]]:
    """A spec of what is right in a wrong one, None where that is no spec; its tree; the paths of what was taken out."""
    removed: list[SpecPath] = []
    for _ in range(MOST_REPAIRS):
        paths = [one.path for one in wrong if one.path]
        if len(paths) < len(wrong) or any(one.code == "KD203" for one in wrong):
            return None, tree, ()
        found: list[SpecPath] = []
        for path in paths:
            while path and isinstance(path[-1], int):
                path = path[:-1]
            if not path:
                return None, tree, ()
            removed.append(path)
            found.append(path)
        tree = _taken_out(tree, found)
        spec, wrong = typed(Spec, tree)
        if spec is not None:
            return spec, tree, tuple(removed)
    return None, tree, ()


def _taken_out(node: Any, paths: Iterable[SpecPath]) -> Any:
    """The node without the values at some paths."""
    below: dict[str | int, list[SpecPath]] = {}
    for path in paths:
        below.setdefault(path[0], []).append(path[1:])
    if isinstance(node, Mapping):
        kept = [entry for entry in node.entries if () not in below.get(entry.key, ())]
        return replace(
            node,
            entries=tuple(
                replace(entry, value=_taken_out(entry.value, below[entry.key]))
                if entry.key in below
                else entry
                for entry in kept
            ),
        )
    if isinstance(node, NodeSequence):
        return replace(
            node,
            items=tuple(
                _taken_out(item, [path for path in below[number] if path]) if number in below else item
                for number, item in enumerate(node.items)
            ),
        )
    return node


def touches(finding: Diagnostic, removed: Iterable[SpecPath]) -> bool:
    """Whether a finding is about something that was taken out: at it, below it or around it."""
    path = finding.path
    return path is not None and any(path[: len(one)] == one or one[: len(path)] == path for one in removed)


def compose_root(text: str, source: str, *, overrides: Sequence[Override], base_dir: Path | None) -> Mapping:
    """The raw nodes of a text with includes and overrides; raises SpecError for wrong syntax."""
    composed, findings = _overridden(text, source, overrides, base_dir)
    findings += composed.findings
    root = composed.tree
    if root is None or (isinstance(root, Scalar) and root.value is None):
        if not findings:
            findings = [_no_mapping(source, text, "the spec is empty")]
        raise SpecError(findings)
    if findings:
        _refuse_other_runner(root)
    raise_errors(findings)
    if not isinstance(root, Mapping):
        finding = _no_mapping(source, text, f"a spec is a mapping, got {kind(root)}")
        raise SpecError(replace(finding, span=root.span))
    for override in overrides:
        if _in_block(root, override) and root.find(override.path[0]) is not None:
            continue
        try:
            changed = apply(root, override)
        except SpecError as error:
            findings += error.diagnostics
            continue
        assert isinstance(changed, Mapping)
        root = changed
    _refuse_other_runner(root)
    raise_errors(findings)
    return root


def _refuse_other_runner(root: Node) -> None:
    """Raise KD229, and nothing else, for a spec of one of United-Perception's other runners."""
    other = of_other_runner(root)
    if other is not None:
        raise SpecError(other)


def _in_block(root: Mapping, override: Override) -> bool:
    """Whether an override changes a building block, which has been done while reading."""
    key = override.path[0]
    return key not in TOP_KEYS and not key.startswith("teacher")


def _overridden(
    text: str, source: str, overrides: Sequence[Override], base_dir: Path | None
) -> tuple[Composed, list[Diagnostic]]:
    """Compose the text with the overrides of building blocks, before aliases copy their values."""
    findings: list[Diagnostic] = []
    blocks = [o for o in overrides if o.path[0] not in TOP_KEYS and not o.path[0].startswith("teacher")]

    def top(key: str, value: Node) -> Node:
        for override in blocks:
            if override.path[0] == key:
                try:
                    value = apply(value, override.rest())
                except SpecError as error:
                    findings.extend(error.diagnostics)
        return value

    include = None if base_dir is None else Includer(base_dir, base_dir, source, _self_path(source, base_dir))
    keep = frozenset(o.source for o in overrides)
    composed = compose(text, source, include=include, top=top if blocks else None, keep=keep)
    return composed, findings


def _self_path(source: str, base_dir: Path) -> tuple[Path, ...]:
    path = base_dir / Path(source).name if "\0" not in source else base_dir
    try:
        return (real_path(path),)
    except RunError:
        return ()


def _with_save_dir(tree: Mapping, source: str) -> Mapping:
    saver = tree.find("saver")
    if saver is not None and (not isinstance(saver.value, Mapping) or saver.value.find("save_dir")):
        return tree
    name = Path(source).stem if source and not source.startswith("<") else "spec"
    if source.startswith("<") and source not in ("<stdin>", "<string>"):
        name = source[1:-1]
    span = tree.span if saver is None else saver.key_span
    text = f"runs/{name}{seed_suffix(tree)}"
    entry = Entry(key="save_dir", key_span=span, value=Scalar(value=text, span=span, text=text))
    made = Mapping(entries=(entry,), span=span)
    if saver is not None and isinstance(saver.value, Mapping):
        made = saver.value.with_entry(entry)
    return tree.with_entry(Entry(key="saver", key_span=span, value=made))


def seed_suffix(tree: Mapping) -> str:
    """`-seed2` where the command line sets `runtime.random_seed` to 2, else nothing: the runs of a sweep differ."""
    runtime = tree.get("runtime")
    seed = runtime.get("random_seed") if isinstance(runtime, Mapping) else None
    if not isinstance(seed, Scalar) or not isinstance(seed.value, int):
        return ""
    return f"-seed{seed.value}" if is_argument((seed.span.written or seed.span).source) else ""


def _no_mapping(source: str, text: str, message: str) -> Diagnostic:
    line = text.splitlines()[0] if text.splitlines() else ""
    span = Span(source=source, line=1, column=1, end_column=2, excerpt=line)
    help = "it starts with keys such as `net:`, `dataset:`, `trainer:`"
    return Diagnostic(code="KD113", message=message, help=help, span=span)


def raise_errors(findings: Iterable[Diagnostic]) -> None:
    """Raise SpecError with all findings if one of them is an error, in the order of the text."""
    unique = without_reported_numbers(once(findings))
    if any(finding.severity == "error" for finding in unique):
        raise SpecError(in_order(unique))


def in_order(findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Findings in the order of the text, those about arguments of the command line last."""
    return sorted(findings, key=_order)


def once(findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Each finding once: what train and test share is checked twice."""
    unique: dict[object, Diagnostic] = {}
    for one in findings:
        place = one.path if one.span is None else (one.span.source, one.span.line, one.span.column)
        unique.setdefault((one.code, one.message, place), one)
    return list(unique.values())


def _order(finding: Diagnostic) -> tuple[bool, str, int, int]:
    span = finding.span
    if span is None:
        return (True, "", 0, 0)
    return (is_argument(span.source), "", span.line, span.column)


class Dumper(yaml.SafeDumper):
    """A YAML dumper that quotes exactly the strings that YAML 1.2's core schema would read as something else."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(dumper: Dumper, value: float) -> yaml.ScalarNode:
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


Dumper.add_representer(float, _float)
Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)
for _tag, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    ("merge", "<<"),
):
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)


def resolved_data(spec: Spec) -> dict[str, Any]:
    """The spec with every default, under the language's own keys, without `sweep`, which is no part of a run."""
    data = spec.model_dump(exclude_none=True, exclude={"sweep"})
    mimic = data.get("mimic")
    teachers = data.pop("teachers")
    written: dict[str, Any] = {"runtime": data["runtime"], "net": data["net"], **teachers}
    if mimic is not None:
        written["mimic"] = _mimic(mimic)
    return {**written, **{key: value for key, value in data.items() if key not in written}}


def _mimic(mimic: dict[str, Any]) -> dict[str, Any]:
    jobs = {name: _job(job) for name, job in mimic.pop("jobs").items()}
    if list(jobs) == ["mimic_job0"]:
        return {**jobs["mimic_job0"], **mimic}
    return {"mimic_as_jobs": True, **jobs, **mimic}


def _job(job: dict[str, Any]) -> dict[str, Any]:
    cfgs = {**job.pop("losses"), **job.pop("options")}
    teachers = job.pop("teachers")
    return {**job, "cfgs": cfgs, **teachers}


def resolved_yaml(spec: Spec) -> str:
    """Complete YAML; parsing it gives an equal Spec."""
    data = resolved_data(spec)
    return yaml.dump(
        data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )


def spec_hash(spec: Spec) -> str:
    """sha256 of the resolved spec, the same for every way of writing it."""
    text = json.dumps(resolved_data(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
