"""`kdcli inspect-features`: print the layers of the networks in a file, or the pairs of layers that fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdcli.commands import uncollected
from kdcli.errors import KdError, UsageError
from kdcli.failures import doing

if TYPE_CHECKING:
    from kdcli.commands.options import InspectOptions
    from kdcli.spec.schema import JobTeacher

NOTHING_FITS = (
    "no maps, and no equally many tokens, fit: name vectors in both networks by hand, such as what goes into the"
    " classifiers (`path:in`), or the logits\n"
)


def inspect_features(options: InspectOptions) -> None:
    """Print the layers of every network in a file; with --pairs, those of student and teacher that fit."""
    from kdcli.report.analysis_text import layers_text, networks_text
    from kdcli.report.console import wants_colour, write
    from kdcli.spec.networks import read_networks

    parsed = read_networks(options.spec, options.changes)
    try:
        with uncollected():
            from kdcli.analysis.layers import chosen, filtered, input_size, inspect

            size = None if options.input is None else input_size(options.input)
            with doing("looking at the networks"):
                networks = inspect(
                    parsed,
                    size=size,
                    plugins=options.plugins,
                    say=lambda text: write(f"{text}\n", sys.stderr),
                )
    except KdError as error:
        raise error.located(parsed.locate) from error.__cause__
    colour = wants_colour(sys.stdout)
    if options.pairs:
        from kdcli.analysis.pairs import fitting_pairs, mimic_block
        from kdcli.report.analysis_text import pairs_text

        teachers = {name: layers for name, layers in networks.items() if name != "net"}
        if "net" not in networks or not teachers:
            raise UsageError.of("--pairs needs a student (`net`) and a teacher", "add the missing network")
        pairs = {n: fitting_pairs(networks["net"], t) for n, t in chosen(teachers, options.net).items()}
        known = _settings(parsed.text, parsed.source, options.changes)
        fitting = {name: found for name, found in pairs.items() if found}
        block = mimic_block(fitting, known) if fitting else NOTHING_FITS
        write(pairs_text(pairs, block, colour=colour))
        return
    shown = {
        name: filtered(layers, options.filter, options.type)
        for name, layers in chosen(networks, options.net).items()
    }
    if len(shown) == 1:
        (rows,) = shown.values()
        write(layers_text(rows, options.format, depth=options.depth, colour=colour))
    else:
        write(networks_text(shown, options.format, depth=options.depth, colour=colour))


def _settings(text: str, source: str, changes: Sequence[str]) -> Mapping[str, JobTeacher]:
    """Settings of each teacher in the spec's mimic jobs; empty where the text is no whole, valid spec."""
    from kdcli.spec.parse import parse
    from kdcli.spec.text.overrides import parse_assignment

    overrides = [parse_assignment(one, number) for number, one in enumerate(changes, 1)]
    try:
        spec = parse(text, source, overrides=overrides).spec
    except KdError:
        return {}
    jobs = spec.mimic.jobs.values() if spec.mimic is not None else ()
    return {name: teacher for job in jobs for name, teacher in job.teachers.items()}
