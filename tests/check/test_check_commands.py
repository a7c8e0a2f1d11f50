"""`kdcli validate` from the outside: formats, exit codes, several files, files on disk."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdcli.cli import main
from kdcli.commands.options import ValidateOptions
from kdcli.commands.validate import examine, files_and_changes, validate
from kdcli.models.network import build_network
from kdcli.models.weights import save_safetensors
from kdcli.spec.parse import read
from tests.training.runs import SPEC

WRONG = SPEC.replace("type: kd_loss", "type: kd_los")


@pytest.fixture(autouse=True)
def specs() -> None:
    Path("right.yaml").write_text(SPEC)
    Path("wrong.yaml").write_text(WRONG)
    Path("warned.yaml").write_text(SPEC + "hooks: [{type: nothing_like_it}]\n")


def run(*names: str, **options: object) -> int:
    return validate(ValidateOptions(specs=names, **options))  # type: ignore[arg-type]


def test_a_right_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("right.yaml") == 0
    text = capsys.readouterr().out
    assert "student" in text and "teacher0" in text and "mimic_job0.teacher0.loss" in text
    assert "steps  10 = 2 epochs x 5" in text and text.endswith("the spec is right\n")
    assert run("right.yaml", quiet=True) == 0
    assert capsys.readouterr().out == ""


def test_several_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("right.yaml", "wrong.yaml") == 1
    text = capsys.readouterr().out
    assert "error KD306" in text and text.count("the spec is right") == 0
    assert "did you mean" in text and "steps  10" in text


def test_strict(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("warned.yaml") == 0
    assert "with 1 warning" in capsys.readouterr().out
    assert run("warned.yaml", strict=True) == 1


@pytest.mark.parametrize("format", ["concise", "json", "github", "sarif"])
def test_formats_for_machines(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("wrong.yaml", format=format) == 1
    text = capsys.readouterr().out
    assert "KD306" in text
    if format in ("json", "sarif"):
        json.loads(text)


def test_a_spec_that_is_not_there_hides_no_finding_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("wrong.yaml", "gone.yaml", "right.yaml", format="sarif") == 2
    results = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["KD306", "KD001"]


@pytest.mark.parametrize("format", ["github", "sarif"])
def test_paths_for_a_host_begin_at_the_root_of_the_repository(
    format: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("repository/specs/nested").mkdir(parents=True)
    Path("repository/.git").mkdir()
    Path("repository/specs/wrong.yaml").write_text(WRONG)
    monkeypatch.chdir("repository/specs/nested")
    assert run("../wrong.yaml", format=format) == 1
    said = capsys.readouterr().out
    assert ("file=specs/wrong.yaml," if format == "github" else '"uri": "specs/wrong.yaml"') in said


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(WRONG.encode())))
    assert run("-", quiet=True) == 1


def test_changes_are_told_from_files() -> None:
    Path("a=b.yaml").write_text(SPEC)
    assert files_and_changes(["right.yaml", "a=b.yaml", "trainer.max_epoch=3"]) == (
        ["right.yaml", "a=b.yaml"],
        ["trainer.max_epoch=3"],
    )


def teacher(widths: list[int]) -> None:
    """Weights of a teacher of these widths, as `t.safetensors`."""
    spec = read("right.yaml", [f"teacher0.model.kwargs.widths={widths}"]).spec
    net = build_network(spec.teachers["teacher0"], path=("teachers", "teacher0"))
    save_safetensors(net.state_dict(), Path("t.safetensors"))


@pytest.mark.parametrize(("widths", "found"), [([4, 4, 4, 8], []), ([4, 4, 4, 16], ["KD531"])])
def test_weights_must_fit(widths: list[int], found: list[str]) -> None:
    teacher(widths)
    changes = ["mimic.teacher0.teacher_weight=t.safetensors"]
    told = examine("right.yaml", changes, files="full")[0]
    assert [one.code for one in told] == found
    assert all(one.span and one.span.source == "argument 1" for one in told)


def test_files_that_are_not_there() -> None:
    changes = ["mimic.teacher0.teacher_weight=nope.safetensors", "saver.pretrain_model=gone.pth"]
    assert examine("right.yaml", changes)[0] == []
    told = examine("right.yaml", changes, files="full")[0]
    assert [one.code for one in told] == ["KD530", "KD530"]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str | None]]:
    """(specs, files) of every `kdcli validate` of a test, none of which runs."""
    seen: list[tuple[list[str], str | None]] = []

    def note(options: ValidateOptions) -> int:
        seen.append((list(options.specs), options.files))
        return 0

    monkeypatch.setattr("kdcli.commands.validate.validate", note)
    return seen


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["right.yaml"], None),
        (["--files", "right.yaml"], "full"),
        (["right.yaml", "--files"], "full"),
        (["--files=quick", "right.yaml"], "quick"),
        (["right.yaml", "--files=quick"], "quick"),
        (["right.yaml", "--files=full", "--quiet"], "full"),
    ],
)
def test_files_never_swallows_a_spec(
    words: list[str], files: str | None, looked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdcli", "validate", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0 and looked == [(["right.yaml"], files)]


def test_another_word_for_files_is_wrong_usage(
    looked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdcli", "validate", "--files=fast", "right.yaml"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and looked == [] and "quick" in capsys.readouterr().err


def test_quick_looks_at_no_image(tmp_path: Path) -> None:
    for name in ("cat", "dog", "emu", "fox"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / name / "0.png")
        (tmp_path / name / "1.png").write_bytes(b"junk")
    data = f"{{type: image_folder, kwargs: {{root: {tmp_path}, color_mode: GRAY}}}}"
    told = {
        files: examine("right.yaml", [f"dataset.train.dataset={data}"], files=files)[0]
        for files in ("full", "quick")
    }
    assert [d.code for d in told["full"] if d.severity == "error"] == ["KD511"] * 4
    assert [d.code for d in told["quick"] if d.severity == "error"] == []


def kdcli(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from kdcli.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )


def test_exit_codes() -> None:
    assert kdcli("validate", "wrong.yaml").returncode == 1
    assert kdcli("validate", "not_there.yaml").returncode == 2
    assert kdcli("validate", "right.yaml", "--format", "xml").returncode == 2
    done = kdcli("explain", "KD306")
    assert done.returncode == 0 and done.stdout.startswith("KD306")


def test_before_the_build_stage_torch_is_not_there() -> None:
    code = (
        "import sys, time; from kdcli.commands.options import *; from kdcli.commands.validate import *;"
        "found = validate(ValidateOptions(specs=('wrong.yaml',)));"
        "assert 'torch' not in sys.modules and found == 1; print('\\n', time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1.0


def test_help_is_quick() -> None:
    code = (
        "import sys, time; from kdcli.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules; print('\\n', time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 0.8  # 0.25 s on a machine of one's own


def test_layers_of_both_networks_are_told_at_once() -> None:
    changes = ["mimic.student.mimic_name=[a, b]", "mimic.teacher0.mimic_name=[c, d]"]
    assert [one.code for one in examine("right.yaml", changes)[0]] == ["KD422"] * 4
