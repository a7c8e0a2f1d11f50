"""`kdcli explain`, `methods`, `schema`: what the tool knows, in words; none of them imports torch."""

from __future__ import annotations

import sys

from kdcli.errors import UsageError, did_you_mean


def explain(code: str) -> None:
    """What a code means, why it matters, an example."""
    from kdcli.codes import CODES
    from kdcli.report.console import wants_colour, write
    from kdcli.report.words import explanation_text

    name = code.upper()
    if name not in CODES:
        raise UsageError.of(f"there is no code `{code}`", did_you_mean(name, sorted(CODES)))
    write(explanation_text(name, CODES[name], colour=wants_colour(sys.stdout)))


def methods(name: str | None) -> None:
    """All losses and mimic methods, or one of them with its arguments and a fragment to paste."""
    from kdcli.distill.mimickers import MIMICKERS
    from kdcli.losses import KINDS, LOSSES
    from kdcli.losses.describe import describe
    from kdcli.reference.methods import fragment, method_fragment, method_of
    from kdcli.report.console import wants_colour, write
    from kdcli.report.words import loss_text, losses_text, method_text

    colour = wants_colour(sys.stdout)
    known = [method_of(one) for one in MIMICKERS]
    if name is None:
        by_kind = {kind: [describe(loss) for loss in table] for kind, table in KINDS.items()}
        write(losses_text(by_kind, known, colour=colour))
    elif name in LOSSES:
        write(loss_text(describe(name), fragment(name), colour=colour))
    elif name in MIMICKERS:
        write(method_text(method_of(name), method_fragment(name), colour=colour))
    else:
        help = did_you_mean(name, [*LOSSES, *MIMICKERS])
        raise UsageError.of(f"there is no loss or mimic method `{name}`", help)


def schema() -> None:
    """The JSON Schema of the spec language, for editors."""
    from kdcli.reference.schema_json import schema_text
    from kdcli.report.console import write

    write(schema_text())
