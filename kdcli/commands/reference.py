"""`kdcli explain`, `methods`, `schema`, `doctor`: print what kdcli knows about codes, losses, the spec, the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from kdcli.commands.options import DoctorOptions, ExplainOptions, MethodsOptions, SchemaOptions


def explain(options: ExplainOptions) -> None:
    """Print what a code means, why it matters, an example."""
    from kdcli.codes import CODES
    from kdcli.report.console import wants_colour, write
    from kdcli.report.reference_text import explanation_text

    name = options.code.upper()
    if name not in CODES:
        raise UsageError.of(f"there is no code `{options.code}`", did_you_mean(name, sorted(CODES)))
    write(explanation_text(name, CODES[name], colour=wants_colour(sys.stdout)))


def methods(options: MethodsOptions) -> None:
    """Print all losses and mimic methods, or one of them with its arguments and a block to paste."""
    from kdcli.distill.mimickers import MIMICKERS
    from kdcli.losses import LOSSES
    from kdcli.losses.parts.describe import Description, describe
    from kdcli.reference.methods import fragment, method_fragment, method_of
    from kdcli.report.console import wants_colour, write
    from kdcli.report.reference_text import loss_text, losses_text, method_text
    from kdcli.spec.plugins import admit, is_own, load_own

    name, colour = options.name, wants_colour(sys.stdout)
    known = [method_of(one) for one in MIMICKERS]
    if name is None:
        by_kind: dict[str, list[Description]] = {}
        for loss, record in LOSSES.items():
            by_kind.setdefault(record.kind, []).append(describe(loss))
        write(losses_text(by_kind, known, colour=colour))
    elif name in LOSSES:
        write(loss_text(describe(name), fragment(name), colour=colour))
    elif name in MIMICKERS:
        write(method_text(method_of(name), method_fragment(name), colour=colour))
    elif is_own(name):
        made = load_own(name, options.plugins, ())
        admit(name)
        if hasattr(made, "losses_of"):
            write(method_text(method_of(name), method_fragment(name), colour=colour))
        else:
            write(loss_text(describe(name), fragment(name), colour=colour))
    else:
        help = did_you_mean(name, [*LOSSES, *MIMICKERS])
        raise UsageError.of(f"there is no loss or mimic method `{name}`", help)


def schema(_: SchemaOptions) -> None:
    """Print the JSON Schema of the spec language, for editors."""
    from kdcli.reference.schema_json import schema_text
    from kdcli.report.console import write

    write(schema_text())


def doctor(options: DoctorOptions) -> None:
    """Print versions, hardware and installed extras, as text or JSON."""
    from kdcli.reference.doctor import diagnose
    from kdcli.report.console import write

    facts = diagnose(Path())
    write(json.dumps(facts, indent=2) + "\n" if options.format == "json" else doctor_text(facts))


def doctor_text(facts: dict[str, Any]) -> str:
    """Facts of `diagnose` as text, one a line; for an extra, what is missing."""
    from kdcli.report.quantities import size

    cpu = facts["cpu"]
    threads = f"{cpu['usable']} of {cpu['cores']} cores usable, torch uses {cpu['torch_threads']}"
    if cpu["OMP_NUM_THREADS"]:
        threads += f" (OMP_NUM_THREADS={cpu['OMP_NUM_THREADS']})"
    devices = [
        f"{d['name']}, {size(d['memory_bytes'])}, capability {d['capability']}"
        f" ({'bf16 and TF32' if d['bf16'] else 'neither bf16 nor TF32 in hardware'})"
        for d in facts["cuda"]["devices"]
    ]
    built = facts["cuda"]["built_for"]
    cuda = "; ".join(devices) or ("no device is visible" if built else "torch is built without CUDA")
    libraries = [
        f"{label} {facts['cuda'][key]}"
        for label, key in (("driver", "driver"), ("cuDNN", "cudnn"), ("NCCL", "nccl"))
        if facts["cuda"][key] is not None
    ]
    if built:
        libraries.insert(0, f"torch is built for CUDA {built}")
    if facts["cuda"]["visible"] is not None:
        libraries.append(f"CUDA_VISIBLE_DEVICES={facts['cuda']['visible']}")
    rows = [
        ("kdcli", facts["kdcli"] + (" (from a checkout)" if facts["editable"] else "")),
        ("python", facts["python"]),
        ("platform", facts["platform"]),
        *((name, found or "MISSING") for name, found in facts["packages"].items()),
        ("cpu", threads),
        ("cuda", cuda + (f" ({', '.join(libraries)})" if libraries else "")),
        ("weights", f"{facts['weights']['torch']} (torchvision, timm), {facts['weights']['hub']} (hf, timm)"),
        (
            "hub",
            facts["weights"]["endpoint"] + (" (offline mode is on)" if facts["weights"]["offline"] else ""),
        ),
        ("free disk here", size(facts["disk_free_bytes"])),
    ]
    for extra, parts in facts["extras"].items():
        missing = [name for name, found in parts.items() if found is None]
        there = ", ".join(f"{name} {found}" for name, found in parts.items() if found is not None)
        lacking = f"absent: pip install 'kdcli[{extra}]'" if missing else ""
        rows.append((f"extra {extra}", "; ".join(part for part in (there, lacking) if part)))
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows)
