"""The pages of kdcli/pages: every command of a tutorial works as it stands there, and shows what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.recipes import BLOCK, ROOT
from tests.scenes import write_scenes

FOLDER = ROOT / "kdcli" / "pages"
PAGES = sorted(path.name for path in FOLDER.glob("*.md"))
RUN = [name for name in PAGES if "\n```sh" in (FOLDER / name).read_text()]
TUTORIALS = """own-images own-network detection pretrained-teacher no-labels features-and-pairs several-teachers cache
several-gpus resume sweep python ci report own-code""".split()

LONGEST = """own-images resume no-labels detection features-and-pairs several-teachers pretrained-teacher own-code cache
report own-network""".split()
"""Pages whose commands take half a minute and more."""
LONG = pytest.mark.long


def images(folder: Path) -> None:
    """scikit-learn's digits as PNG of 32x32, a folder a class; and without labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    seen = {label: 0 for label in range(10)}
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        seen[label] += 1
        side = "train" if seen[label] <= 12 else "test" if seen[label] <= 20 else None
        if side is None:
            continue
        image = Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((32, 32)).convert("RGB")
        for place in (f"{side}/{label}", {"train": "unlabelled", "test": "held_out"}[side]):
            (folder / "images" / place).mkdir(parents=True, exist_ok=True)
            image.save(folder / "images" / place / f"{number}.png")


def teacher(folder: Path) -> None:
    """A ResNet-18 that has learnt those images, as `torch.save(net.state_dict(), ...)` writes it."""
    import torch
    from torch.nn import functional as F
    from torchvision.models import resnet18

    paths = sorted((folder / "images/train").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
    pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.tensor([int(path.parent.name) for path in paths])
    torch.manual_seed(0)
    net = resnet18(num_classes=10)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(8):
        for batch in torch.randperm(len(labels)).split(30):
            optimizer.zero_grad()
            F.cross_entropy(net(pixels[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(net.state_dict(), folder / "teacher.pth")


def scenes(folder: Path) -> None:
    """A few scenes in COCO's format where `kdcli make-data fashion-scenes data/fashion-scenes` puts them."""
    write_scenes(folder / "data" / "fashion-scenes", num_train=8, num_test=4)


DATA: dict[str, Callable[[Path], None]] = {"images": images, "teacher": teacher, "scenes": scenes}


def told(text: str, what: str) -> list[str]:
    """What comments of a page tell the test: `<!-- test data: images teacher -->`."""
    found = re.findall(rf"<!-- test {re.escape(what)}:(.*?)-->", text, re.S)
    return [word for part in found for word in shlex.split(part)]


def form(line: str) -> str:
    """A line without its figures, spaces and rules; numbers in a word (`layer3`, `KD640`) stay."""
    line = re.sub(r"(?<![A-Za-z\d])\d[\d.,]*", "0", line.replace("─", ""))
    return " ".join(line.split())


def shown(expected: str, printed: str) -> str:
    """The first line of a page's output that no printed line begins with, in this order; "" where all were printed.

    Figures may differ; `...` stands for anything.
    """
    lines = iter([form(line) for line in printed.splitlines()])
    for wanted in filter(None, map(form, expected.splitlines())):
        pattern = re.compile(".*".join(map(re.escape, wanted.split("..."))))
        if not any(pattern.match(line) for line in lines):
            return wanted
    return ""


def run(line: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one command of a page, with the changes that make it small."""
    words = shlex.split(line, comments=True)
    assert words[0] in ("kdcli", "python"), f"{line}: only kdcli and python are run; mark others as `console`"
    program = ["-m", "kdcli.cli", *words[1:]] if words[0] == "kdcli" else words[1:]
    if words[0] == "kdcli" and words[1] not in ("init", "compare", "make-data", "docs"):
        for word in words:
            program += told(text, f"changes {word}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KDCLI_OFFLINE": "1", "COLUMNS": "140"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        [sys.executable, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment,
        timeout=300,
    )


def test_every_tutorial_is_there_and_run() -> None:
    assert set(TUTORIALS) <= {Path(name).stem for name in RUN}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_is_run_and_what_is_seen(name: str) -> None:
    """Each `text` block has a command before it, each change names a file that a command names."""
    text = (FOLDER / name).read_text()
    blocks = [block.groupdict() for block in BLOCK.finditer(text)]
    assert len(blocks) == text.count("\n```") / 2, "a block has no language"
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block["language"] == "text" and name in RUN:
            assert before is not None and before["language"] in ("sh", "console"), block["text"]
    commands = "".join(block["text"] for block in blocks if block["language"] == "sh")
    for spec in re.findall(r"<!-- test changes (\S+):", text):
        assert spec in commands
    assert set(told(text, "data")) <= set(DATA)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=LONG if Path(name).stem in LONGEST else pytest.mark.slow) for name in RUN],
)
def test_a_page_works_as_written(name: str, tmp_path: Path) -> None:
    text = (FOLDER / name).read_text()
    for data in told(text, "data"):
        DATA[data](tmp_path)
    printed = None
    for block in BLOCK.finditer(text):
        if block["language"] == "sh":
            printed = ""
            for line in block["text"].replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    done = run(line, text, tmp_path)
                    printed += done.stdout
                    fails = "exit 1" in line
                    assert done.returncode == int(fails), f"{line}\n{done.stdout}"
        elif block["language"] == "text":
            if printed is not None:
                missing = shown(block["text"], printed)
                assert not missing, f"not printed: {missing}\n{printed}"
        elif block["language"] == "console":
            printed = None
        elif block["file"]:
            (tmp_path / block["file"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block["file"]).write_text(block["text"])


def test_figures_of_an_output_may_differ_and_words_may_not() -> None:
    assert shown("top1  50.67\nfinished 3 steps in 1.2 s", "top1   7\nmore\nfinished 30 steps in 9 s\n") == ""
    assert shown("top1\nloss", "loss\ntop1") == "loss"
    assert shown("student: runs/... · next", "student: runs/x.safetensors · next: y") == ""
    assert shown("the spec is right", "the spec is wrong") == "the spec is right"
    assert shown("error KD422", "error KD423") == "error KD422"
