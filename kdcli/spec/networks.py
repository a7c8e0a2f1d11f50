"""Specs and fragments of networks alone, for showing layers without training settings or data."""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from kdcli.errors import Diagnostic, Span, SpecError, SpecPath
from kdcli.spec.form.canonical import canonical, network
from kdcli.spec.form.typed import span_of, typed
from kdcli.spec.parse import compose_root, raise_errors, read_text
from kdcli.spec.schema import DataPart, Model, ModuleSpec, Network, Runtime
from kdcli.spec.text.nodes import Entry, Mapping, Node, Scalar, Sequence, kind
from kdcli.spec.text.overrides import Override, parse_assignment
from kdcli.spec.text.source import compose


class Networks(Model):
    """The part of a spec that describes networks and the data that they see."""

    net: Network = ()
    teachers: dict[str, Network] = Field(default_factory=dict)
    runtime: Runtime = Runtime()
    test: DataPart | None = None
    train: DataPart | None = None


def network_path(name: str) -> SpecPath:
    """Where a spec describes the network of a name: `net` or a teacher's."""
    return ("net",) if name == "net" else ("teachers", name)


@dataclass(frozen=True)
class ParsedNetworks:
    """The networks of a text, with the span of everything in it.

    networks: `net` and every teacher, by name. train, test: the data, where the text has it.

    Paths are those of a spec: ("net", 0, "kwargs"), ("teachers", "teacher0", 0, "type").
    """

    networks: AnyMapping[str, tuple[ModuleSpec, ...]]
    train: DataPart | None
    test: DataPart | None
    runtime: Runtime
    tree: Mapping
    warnings: tuple[Diagnostic, ...]
    source: str
    text: str
    base_dir: Path | None = None

    def path(self, name: str) -> SpecPath:
        """The path of a network in the spec: ("net",) or ("teachers", name)."""
        return network_path(name)

    def span(self, path: SpecPath, on_key: bool = False) -> Span:
        """The span of a path."""
        return span_of(self.tree, path, on_key=on_key)

    def locate(self, diagnostic: Diagnostic) -> Diagnostic:
        """The diagnostic with a span, where it has a path."""
        if diagnostic.span is not None or diagnostic.path is None:
            return diagnostic
        return replace(diagnostic, span=self.span(diagnostic.path, diagnostic.on_key))


def read_networks(path_or_dash: str | Path, assignments: AnySequence[str] = ()) -> ParsedNetworks:
    """Read and parse a file, `-` for standard input, with `key.path=value` arguments."""
    text, source, folder = read_text(path_or_dash)
    overrides = [parse_assignment(one, number) for number, one in enumerate(assignments, 1)]
    return parse_networks(text, source, overrides=overrides, base_dir=folder)


def parse_networks(
    text: str,
    source: str,
    *,
    overrides: AnySequence[Override] = (),
    base_dir: Path | None = None,
) -> ParsedNetworks:
    """A whole spec, a text with only `net` or teachers, or a bare list of modules (then `net`).

    What else a whole spec says is not checked here. Raises SpecError with all findings.
    """
    root = _root(text, source, overrides, base_dir)
    tree, findings = canonical(_only(root))
    made = _networks_tree(tree)
    networks, wrong = typed(Networks, made)
    findings += wrong
    raise_errors(findings)
    assert networks is not None
    named = {"net": networks.net} if networks.net else {}
    named.update(networks.teachers)
    if not named:
        help = "it needs `net:`, `teacher0:`, or a list of modules"
        finding = Diagnostic(code="KD220", message="no network in this text", help=help, span=root.span)
        raise SpecError(finding)
    return ParsedNetworks(
        networks=named,
        train=networks.train,
        test=networks.test,
        runtime=networks.runtime,
        tree=made,
        warnings=tuple(findings),
        source=source,
        text=text,
        base_dir=base_dir,
    )


def _root(text: str, source: str, overrides: AnySequence[Override], base_dir: Path | None) -> Mapping:
    """The text's mapping; a bare module list or a bare module becomes `net`."""
    bare = compose(text, source)
    tree = bare.tree
    if isinstance(tree, Sequence) or (isinstance(tree, Mapping) and _is_module(tree)):
        raise_errors(bare.findings)
        entry = Entry(key="net", key_span=tree.span, value=network(tree))
        return Mapping(entries=(entry,), span=tree.span)
    if tree is not None and not isinstance(tree, Mapping) and tree.value is not None:
        message = f"networks are a mapping or a list of modules, got {kind(tree)}"
        raise SpecError(Diagnostic(code="KD113", message=message, span=tree.span))
    return compose_root(text, source, overrides=overrides, base_dir=base_dir)


def _is_module(tree: Mapping) -> bool:
    type_of = tree.get("type")
    return isinstance(type_of, Scalar) and isinstance(type_of.value, str)


def _only(root: Mapping) -> Mapping:
    """The spec without `mimic` and everything about training: their errors don't matter here."""
    return root.without("mimic", "trainer", "ema", "saver", "hooks", "sweep")


def _networks_tree(tree: Mapping) -> Mapping:
    """The spec with `dataset.train` and `dataset.test` as keys of their own."""
    entries = [e for e in tree.entries if e.key != "dataset"]
    dataset: Node | None = tree.get("dataset")
    if isinstance(dataset, Mapping):
        entries += [e for e in dataset.entries if e.key in ("train", "test")]
    return replace(tree, entries=tuple(entries))
