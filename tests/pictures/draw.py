"""A page as headless Chromium shows it, and a terminal's text as SVG."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
SAMPLES = HERE.parent.parent / "sample_configs"
WINDOW = 1180
WIDTH = 900
COLOURS = 224


def draw_sections(page: Path, pictures: Mapping[Path, tuple[str, int]]) -> list[Path]:
    """For each file the page from an anchor on ('': the top), so many pixels high, made smaller."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("the pictures of a report need Chromium")
    with tempfile.TemporaryDirectory() as folder:
        for path, (anchor, high) in pictures.items():
            shot = Path(folder) / "shot.png"
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            options += [f"--user-data-dir={folder}/profile", f"--window-size={WINDOW},{high}"]
            shown = _from(page, anchor, Path(folder) / "page.html")
            subprocess.run(
                [chromium, *options, f"--screenshot={shot}", shown.as_uri()],
                check=True,
                capture_output=True,
                timeout=120,
            )
            with Image.open(shot) as image:
                height = round(image.height * WIDTH / image.width)
                smaller = image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
                smaller.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return list(pictures)


def _from(page: Path, anchor: str, copy: Path) -> Path:
    """The page without the sections before an anchor: a headless window does not scroll."""
    text = page.read_text(encoding="utf-8")
    if anchor:
        body = text.index("<body>") + len("<body>")
        text = text[:body] + text[text.index(f'<section id="{anchor}"') :]
    copy.write_text(text, encoding="utf-8")
    return copy


def draw_error(spec: Path, slips: Sequence[str], target: Path) -> Path:
    """What `kdcli validate` answers to a spec with wrong values, in colour."""
    shown = Path(spec.parent.name) / spec.name
    command = [sys.executable, "-m", "kdcli.cli", "validate", str(shown), *slips]
    done = subprocess.run(
        command,
        cwd=spec.parent.parent,
        capture_output=True,
        text=True,
        env={"FORCE_COLOR": "1", "PATH": "", "COLUMNS": "90"},
    )
    assert done.returncode == 1, done.stderr
    console = Console(record=True, width=90, file=StringIO(), force_terminal=True)
    for number, part in enumerate([f"kdcli validate {shown}", *(f'"{slip}"' for slip in slips)]):
        more = " \\" if number < len(slips) else ""
        console.print(Text.assemble(("  " if number else "$ ", "dim"), part + more))
    console.print(Text.from_ansi((done.stdout + done.stderr).rstrip()))
    console.save_svg(str(target), title="kdcli validate")
    return target
