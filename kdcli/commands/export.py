"""`kdcli export`: write the student of a run, or of a spec, as an ONNX, torch-export or safetensors file."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from kdcli.commands import located, run_or_spec
from kdcli.errors import UsageError
from kdcli.failures import doing

if TYPE_CHECKING:
    from kdcli.commands.options import ExportOptions
    from kdcli.exports.export import Exported


def export(options: ExportOptions) -> None:
    """Export the student, and print the file's inputs, outputs, accuracy and latency."""
    from kdcli.exports.export import export as run
    from kdcli.report.console import write
    from kdcli.training.build import file_notices

    size = _size(options.input_size)
    opened = run_or_spec(options)
    with located(opened.parsed), doing("exporting the student"):
        done = run(
            opened.parsed,
            opened.options,
            options.format,
            options.output,
            weights=options.weights,
            key=options.weight_key,
            tolerance=options.tolerance,
            spec_hash=opened.spec_hash,
            size=size,
        )
    for notice in file_notices(opened.parsed.spec, opened.options.places, "dataset"):
        sys.stderr.write(f"warning: {notice}\n")
    if not done.real:
        sys.stderr.write("warning: the test data can't be read, so the file was proved on made-up images\n")
    write(exported_text(done))


def exported_text(done: Exported) -> str:
    """The lines that are printed after an export: weights, input, outputs, size, difference, latency."""
    import json

    from kdcli.report.quantities import size

    images = f"{done.images} {'test' if done.real else 'made-up'} images"
    mean, std = (json.loads(done.metadata[key]) for key in ("mean", "std"))
    normalised = f", normalised with mean {mean} and std {std}" if mean and std else ""
    inputs = json.loads(done.metadata["inputs"])
    shape = "x".join(map(str, json.loads(done.metadata["input_shape"])))
    sizes = "; `image_size` batch x 2: height and width without padding" if "image_size" in inputs else ""
    outputs = json.loads(done.metadata["outputs"])
    what = " and ".join(outputs) if done.proof.boxes is None else f"{done.proof.boxes} boxes and scores"
    alone = f", {done.proof.alone} boxes without a counterpart" if done.proof.boxes is not None else ""
    largest = f"{done.proof.difference:.3g}, {done.proof.share:.1g} of the largest value"
    proved = f"{largest}, in the {what} of {images}{alone}, read back from the file"
    eager = f"eager student: {done.eager_latency_ms:.2f} ms"
    rows = [
        ("weights", done.source),
        ("input", f"`image` batch x {shape}{normalised}{sizes}"),
        ("output", ", ".join(f"`{name}`" for name in outputs)),
        ("size", size(done.bytes)),
        ("largest difference", proved),
        ("latency, one image", f"{done.latency_ms:.2f} ms ({done.runner}); {eager}"),
    ]
    width = max(len(name) for name, _ in rows)
    text = f"{done.path}\n" + "".join(f"  {name:<{width}}  {value}\n" for name, value in rows)
    if done.loaded_by:
        alone = "" if any("from kdcli" in line for line in done.loaded_by) else " without kdcli"
        text += f"load it{alone}:\n" + "".join(f"  {line}\n" for line in done.loaded_by)
    return text


def _size(text: str | None) -> tuple[int, int] | None:
    """Height and width of `--input-size 800x1344`; None where it isn't given."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise UsageError.of(
            f"`--input-size {text}` is no size", "write height x width: `--input-size 800x1344`"
        )
    return int(match[1]), int(match[2])
