"""`kdcli inspect-features`: print the layers of the networks in a file, or the pairs of layers that fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdcli.commands import uncollected
from kdcli.errors import KdError, UsageError, did_you_mean
from kdcli.failures import doing

if TYPE_CHECKING:
    from kdcli.analysis.layers import Layer
    from kdcli.analysis.pairs import FittingPair
    from kdcli.commands.options import InspectOptions
    from kdcli.spec.networks import ParsedNetworks

NOTHING_FITS = (
    "no maps, and no equally many tokens, fit: name vectors in both networks by hand, such as what goes into the"
    " classifiers (`path:in`), or the logits\n"
)


def inspect_features(options: InspectOptions) -> None:
    """Print the layers of every network in a file; with --pairs, those of student and teacher that fit."""
    from kdcli.report.analysis_text import layers_text, networks_text
    from kdcli.report.console import screen_width, wants_colour, write
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
    colour, width = wants_colour(sys.stdout), screen_width(sys.stdout)
    if options.pairs:
        from kdcli.analysis.pairs import fitting_pairs
        from kdcli.report.analysis_text import pairs_text

        teachers = {name: layers for name, layers in networks.items() if name != "net"}
        if "net" not in networks or not teachers:
            raise UsageError.of("--pairs needs a student (`net`) and a teacher", "add the missing network")
        pairs = {n: fitting_pairs(networks["net"], t) for n, t in chosen(teachers, options.net).items()}
        block = _block(parsed, pairs, options) if any(pairs.values()) else NOTHING_FITS
        write(pairs_text(pairs, block, colour=colour, width=width))
        return
    shown = {
        name: filtered(layers, options.filter, options.type)
        for name, layers in chosen(networks, options.net).items()
    }
    if not any(shown.values()) and (options.filter is not None or options.type is not None):
        _tell_no_match(chosen(networks, options.net), options)
    if len(shown) == 1:
        (rows,) = shown.values()
        write(layers_text(rows, options.format, depth=options.depth, colour=colour, width=width))
    else:
        write(networks_text(shown, options.format, depth=options.depth, colour=colour, width=width))


def _tell_no_match(networks: Mapping[str, Sequence[Layer]], options: InspectOptions) -> None:
    """A line on standard error where no layer matches, with the nearest names."""
    rows = [layer for layers in networks.values() for layer in layers]
    asked = [
        (flag, value, known)
        for flag, value, known in (
            ("--filter", options.filter, [part for layer in rows for part in layer.path.split(".")]),
            ("--type", options.type, [layer.type for layer in rows]),
        )
        if value is not None
    ]
    said = " and ".join(f"{flag} {value}" for flag, value, _ in asked)
    hints = filter(None, (did_you_mean(value, list(dict.fromkeys(known))) for _, value, known in asked))
    sys.stderr.write("; ".join([f"no layer of {len(rows)} matches {said}", *hints]) + "\n")


def _block(
    parsed: ParsedNetworks, pairs: Mapping[str, Sequence[FittingPair]], options: InspectOptions
) -> str:
    """The `mimic` block that joins the pairs by the proposed loss, weighted for a pull of 1 where that is known."""
    from kdcli.analysis.proposals import even_weights, mimic_block, proposals_for, trains_task, whole_spec
    from kdcli.spec.tables import task_of
    from kdcli.tasks import TASKS

    try:
        mimic = whole_spec(parsed, options.changes).spec.mimic
    except KdError:
        mimic = None
    jobs = mimic.jobs.values() if mimic is not None else ()
    known = {name: teacher for job in jobs for name, teacher in job.teachers.items()}
    dataset = None if parsed.train is None else parsed.train.dataset.type
    labels = trains_task(parsed.train, mimic)
    proposed = proposals_for(pairs, task_of(TASKS, parsed.runtime.task_names, dataset), labels)
    block = mimic_block(proposed, known)
    if not labels:
        return (
            "# without the task's loss no `loss_weight` is more than another where there is one loss\n"
            + block
        )
    try:
        with doing("measuring how hard the proposed loss pulls"):
            weights = even_weights(parsed, options.changes, block, options.plugins)
    except KdError as error:
        why = error.diagnostics[0].message
        return (
            "# `loss_weight` is the loss's own: the table at the start of `kdcli train` gives that for a pull of 1\n"
            f"# (not measured here: {why})\n{block}"
        )
    return (
        "# `loss_weight`: with it the loss pulls as hard as the task's, on one batch of this data\n"
        + mimic_block(proposed, known, weights)
    )
