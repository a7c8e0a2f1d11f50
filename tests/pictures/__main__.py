"""`python -m tests.pictures`: the README's pictures, made anew from a real run and a real slip."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.pictures.draw import HERE, SAMPLES, draw_error, draw_sections

SECTIONS = {"report_top.png": ("", 1456), "report_features.png": ("where-they-disagree-most", 1830)}
SLIPS = ("mimic.student.mimic_name=[model.layer9]", "mimic.teacher0.mimic_name=[logit]")


def main() -> None:
    """Train the sample, then draw."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "kdcli.cli",
            "train",
            str(SAMPLES / "fashion_feature.yaml"),
            "--quiet",
        ]
        subprocess.run(command, cwd=folder, check=True)
        page = Path(folder) / "runs/fashion_feature/report.html"
        written = draw_sections(page, {HERE / name: part for name, part in SECTIONS.items()})
    written.append(draw_error(SAMPLES / "digits_kd.yaml", SLIPS, HERE / "validate.svg"))
    for path in written:
        sys.stdout.write(f"{path.name}  {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
