"""`kdcli export`: the student of a run, or of a spec, as a file that runs elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.errors import UsageError

if TYPE_CHECKING:
    from kdcli.engine.exports.export import Exported


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportArguments:
    """The command line of `kdcli export`. source: a run folder or a spec."""

    source: str
    changes: Sequence[str]
    format: str
    output: Path | None
    weights: Path | None
    tolerance: float
    plugins: Sequence[str]


def export(arguments: ExportArguments) -> None:
    """Write the file, and say what it is worth."""
    from kdcli.commands import located
    from kdcli.commands.reading import read_checked
    from kdcli.engine.exports.export import export as run
    from kdcli.engine.reopen import reopen
    from kdcli.engine.run import RunOptions
    from kdcli.report.console import write

    if Path(arguments.source).is_dir():
        if arguments.changes:
            raise UsageError.of("a run's spec can't be changed", "export the spec file with these values")
        opened = reopen(Path(arguments.source), plugins=arguments.plugins)
        parsed, options, known_hash = opened.parsed, opened.options, opened.spec_hash
    else:
        parsed = read_checked(arguments.source, arguments.changes, arguments.plugins)
        options = RunOptions(plugins=tuple(arguments.plugins), base_dir=parsed.base_dir)
        known_hash = parsed.hash()
    with located(parsed):
        done = run(
            parsed,
            options,
            arguments.format,
            arguments.output,
            weights=arguments.weights,
            tolerance=arguments.tolerance,
            spec_hash=known_hash,
        )
    if not done.real:
        sys.stderr.write("warning: the test data can't be read, so the file was proved on made-up images\n")
    write(exported_text(done))


def exported_text(done: Exported) -> str:
    """What an export came to."""
    import json

    from kdcli.report.quantities import size

    images = f"{done.images} {'test' if done.real else 'made-up'} images"
    mean, std = (json.loads(done.metadata[key]) for key in ("mean", "std"))
    normalised = f", normalised with mean {mean} and std {std}" if mean and std else ""
    shape = "x".join(map(str, json.loads(done.metadata["input_shape"])))
    eager = f"eager student: {done.eager_latency_ms:.2f} ms"
    rows = [
        ("weights", done.source),
        ("input", f"batch x {shape}{normalised}"),
        ("size", size(done.bytes)),
        ("largest difference", f"{done.difference:.3g} in the logits of {images}, read back from the file"),
        ("latency, one image", f"{done.latency_ms:.2f} ms ({done.runner}); {eager}"),
    ]
    width = max(len(name) for name, _ in rows)
    return f"{done.path}\n" + "".join(f"  {name:<{width}}  {value}\n" for name, value in rows)
