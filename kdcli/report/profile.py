"""A profile as text: where the time of a step goes, and in which operators."""

from __future__ import annotations

from kdcli.training.profile import Profile


def profile_text(profile: Profile, processes: int = 1) -> str:
    """Two tables and where the trace lies."""
    rate = profile.images * processes / profile.seconds
    step = 1e3 * profile.seconds / profile.steps
    lines = [f"{profile.steps} steps, {step:.1f} ms each, {rate:,.0f} images/s", ""]
    lines.append(f"{'part':<18}{'ms a step':>10}{'share':>8}")
    for name, seconds in profile.parts.items():
        lines.append(
            f"{name:<18}{1e3 * seconds / profile.steps:>10.2f}{100 * seconds / profile.seconds:>7.1f}%"
        )
    lines += ["", f"{'operator':<44}{'calls a step':>13}{'ms a step':>11}"]
    for name, count, seconds in profile.operators:
        short = name if len(name) <= 43 else name[:40] + "..."
        lines.append(f"{short:<44}{count / profile.steps:>13.1f}{1e3 * seconds / profile.steps:>11.2f}")
    lines += ["", f"trace: {profile.trace} (open it in https://ui.perfetto.dev or chrome://tracing)"]
    return "\n".join(lines) + "\n"
