"""`kdcli doctor`: the installation in a form fit for a bug report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def doctor(*, as_json: bool) -> None:
    """Print what is installed, on what machine."""
    from kdcli.reference.doctor import diagnose
    from kdcli.report.console import write

    facts = diagnose(Path())
    write(json.dumps(facts, indent=2) + "\n" if as_json else doctor_text(facts))


def doctor_text(facts: dict[str, Any]) -> str:
    """One fact a line, extras with what is missing."""
    from kdcli.report.quantities import size

    cpu = facts["cpu"]
    threads = f"{cpu['usable']} of {cpu['cores']} cores usable, torch uses {cpu['torch_threads']}"
    if cpu["OMP_NUM_THREADS"]:
        threads += f" (OMP_NUM_THREADS={cpu['OMP_NUM_THREADS']})"
    devices = [
        f"{d['name']}, {size(d['memory_bytes'])}, capability {d['capability']}"
        for d in facts["cuda"]["devices"]
    ]
    built = facts["cuda"]["built_for"]
    cuda = "; ".join(devices) or ("no device is visible" if built else "torch is built without CUDA")
    rows = [
        ("kdcli", facts["kdcli"] + (" (from a checkout)" if facts["editable"] else "")),
        ("python", facts["python"]),
        ("platform", facts["platform"]),
        *((name, found or "MISSING") for name, found in facts["packages"].items()),
        ("cpu", threads),
        ("cuda", cuda + (f" (torch is built for CUDA {built})" if built else "")),
        ("free disk here", size(facts["disk_free_bytes"])),
    ]
    for extra, parts in facts["extras"].items():
        missing = [name for name, found in parts.items() if found is None]
        there = ", ".join(f"{name} {found}" for name, found in parts.items() if found is not None)
        lacking = f"absent: pip install 'kdcli[{extra}]'" if missing else ""
        rows.append((f"extra {extra}", "; ".join(part for part in (there, lacking) if part)))
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows)
