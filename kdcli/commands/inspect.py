"""`kdcli inspect-features`: the layers of the networks in a file, or the pairs that fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kdcli.commands.collection import uncollected
from kdcli.errors import KdError, UsageError

if TYPE_CHECKING:
    from kdcli.spec.schema import JobTeacher

NOTHING_FITS = (
    "no maps, and no equally many tokens, fit: name vectors in both networks by hand, such as what goes into the"
    " classifiers (`path:in`), or the logits\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """depth: deepest layer shown, from 0. filter: of paths, kind: of layers. size: as `3x224x224`."""

    depth: int | None = None
    filter: str | None = None
    kind: str | None = None
    net: str | None = None
    size: str | None = None
    pairs: bool = False
    format: Literal["table", "json", "yaml"] = "table"
    plugins: tuple[str, ...] = ()


def inspect_features(spec: str, changes: Sequence[str], options: InspectOptions) -> None:
    """Show the layers of every network in a file; with `pairs`, which of them fit."""
    from kdcli.report.console import wants_colour, write
    from kdcli.report.layers import layers_text, networks_text
    from kdcli.spec.networks import parse_networks
    from kdcli.spec.overrides import parse_assignment
    from kdcli.spec.parse import read_text

    text, source, folder = read_text(spec)
    overrides = [parse_assignment(one, number) for number, one in enumerate(changes, 1)]
    parsed = parse_networks(text, source, overrides=overrides, base_dir=folder)
    try:
        with uncollected():
            from kdcli.analysis.layers import chosen, filtered, input_size, inspect

            size = None if options.size is None else input_size(options.size)
            networks = inspect(parsed, size=size, plugins=options.plugins)
    except KdError as error:
        raise error.located(parsed.locate) from error.__cause__
    colour = wants_colour(sys.stdout)
    if options.pairs:
        from kdcli.analysis.pairs import fitting_pairs, mimic_block
        from kdcli.report.pairs import pairs_text

        teachers = {name: layers for name, layers in networks.items() if name != "net"}
        if "net" not in networks or not teachers:
            raise UsageError.of("--pairs needs a student (`net`) and a teacher", "add the missing network")
        pairs = {n: fitting_pairs(networks["net"], t) for n, t in chosen(teachers, options.net).items()}
        known = _settings(text, source, changes)
        fitting = {name: found for name, found in pairs.items() if found}
        block = mimic_block(fitting, known) if fitting else NOTHING_FITS
        write(pairs_text(pairs, block, colour=colour))
        return
    shown = {
        name: filtered(layers, options.filter, options.kind)
        for name, layers in chosen(networks, options.net).items()
    }
    if len(shown) == 1:
        (rows,) = shown.values()
        write(layers_text(rows, options.format, depth=options.depth, colour=colour))
    else:
        write(networks_text(shown, options.format, depth=options.depth, colour=colour))


def _settings(text: str, source: str, changes: Sequence[str]) -> Mapping[str, JobTeacher]:
    """What the spec says of its teachers already, if it is a whole spec that can be read."""
    from kdcli.spec.overrides import parse_assignment
    from kdcli.spec.parse import parse

    overrides = [parse_assignment(one, number) for number, one in enumerate(changes, 1)]
    try:
        spec = parse(text, source, overrides=overrides).spec
    except KdError:
        return {}
    jobs = spec.mimic.jobs.values() if spec.mimic is not None else ()
    return {name: teacher for job in jobs for name, teacher in job.teachers.items()}
