"""`python -m tests.pictures`: the README's pictures, made anew from a real run and a real slip."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.pictures.draw import HERE, SAMPLES, draw_error, draw_sections

TOP = {"report_top.png": ("", 1216)}
FEATURES = {"report_features.png": ("where-they-disagree-most", 1500)}
SLIPS = ("mimic.student.mimic_name=[model.layer9]", "mimic.teacher0.mimic_name=[logit]")


def main() -> None:
    """Train the demo beside its student alone, and a sample with features; then draw."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("demo", "demo_student", "fashion_feature"):
            kdcli(folder, "train", str(SAMPLES / f"{name}.yaml"), "--quiet")
        kdcli(folder, "report", "runs/demo", "--baseline", "runs/demo_student")
        written = draw(Path(folder, "runs/demo"), Path(folder, "runs/fashion_feature"))
    written.append(draw_error(SAMPLES / "digits_kd.yaml", SLIPS, HERE / "validate.svg"))
    for path in written:
        sys.stdout.write(f"{path.name}  {path.stat().st_size / 1000:.0f} kB\n")


def kdcli(folder: str, *words: str) -> None:
    """Run a command in a folder."""
    subprocess.run([sys.executable, "-m", "kdcli.cli", *words], cwd=folder, check=True)


def draw(demo: Path, features: Path) -> list[Path]:
    """The pictures of two runs' reports."""
    written = draw_sections(demo / "report.html", {HERE / name: part for name, part in TOP.items()})
    return written + draw_sections(
        features / "report.html", {HERE / name: part for name, part in FEATURES.items()}
    )


if __name__ == "__main__":
    main()
