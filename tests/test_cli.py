"""The command line: one clear message for every mistake, and the exit code that belongs to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kdcli.cli import main

SAMPLES = Path(__file__).parent.parent / "sample_configs"
DIGITS = str(SAMPLES / "digits_kd.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


class Command:
    """Runs `kdcli ...` in this process; `out` and `err` are what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        self.monkeypatch.setattr(sys, "argv", ["kdcli", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        self.out, self.err = self.capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code


@pytest.fixture
def kdcli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_train_then_eval(kdcli: Command, folder: Path) -> None:
    assert kdcli("train", DIGITS, "trainer.max_iter=3", "--no-report") == 0
    assert kdcli.out == "", "stdout is data, and training has none"
    assert "\x1b" not in kdcli.err
    last = kdcli.err.strip().splitlines()[-1]
    assert "runs/digits_kd/student.safetensors" in last and "kdcli eval" in last
    lines = [json.loads(line) for line in Path("runs/digits_kd/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3]
    assert Path("runs/digits_kd/train.log").read_text().strip()
    assert kdcli("eval", DIGITS, "--format", "json") == 0
    rows = {row["network"]: row for row in json.loads(kdcli.out)["networks"]}
    assert rows["teacher0"]["metrics"]["top1"] > 95 > rows["student"]["metrics"]["top1"]
    assert rows["student"]["parameters"] == 1384
    assert rows["teacher0"]["flops"] > rows["student"]["flops"] > 0
    assert 0 <= rows["teacher0"]["agreement"]["same_top1"] <= 100
    assert kdcli("train", DIGITS, "trainer.max_iter=3") == 1
    assert "finished run" in kdcli.err and "--overwrite" in kdcli.err
    assert kdcli("train", DIGITS, "trainer.max_iter=1", "--overwrite", "--no-report", "--no-check") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train"], 2, "SPEC"),
        (["train", "absent.yaml"], 2, "absent.yaml"),
        (["trian", DIGITS], 2, "trian"),
        (["train", DIGITS, "--gpus", "8"], 1, "--device cpu"),
        (["train", DIGITS, "--device", "cuda"], 1, "--device cpu"),
        (["train", DIGITS, "trainer.max_epochs=3"], 1, "max_epoch"),
        (["train", DIGITS, "mimic.cfgs.loss.kwargs.Tee=3"], 1, "no argument `Tee`"),
        (["train", DIGITS, "mimic.cfgs.loss.type=kdloss"], 1, "kd_loss"),
        (["train", DIGITS, "mimic.student.mimic_name=[model.layer9]"], 1, "model.layer3"),
        (["train", DIGITS, "mimic.teacher0.teacher_weight=none.pt"], 1, "none.pt"),
        (["train", DIGITS, "teacher0.model.type=cifar_resnet14"], 1, "30 missing"),
        (["train", DIGITS, "saver.save_dir=/proc/none"], 1, "cannot write"),
        (["train", DIGITS, "--resume"], 1, "no valid checkpoint"),
        (["eval", DIGITS], 1, "no weights for the student"),
        (["explain", "KD999"], 2, "KD999"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], code: int, said: str, kdcli: Command) -> None:
    import torch

    if "cuda" in arguments or "--gpus" in arguments:
        assert not torch.cuda.is_available() or torch.cuda.device_count() < 8
    assert kdcli(*arguments) == code
    assert said in kdcli.err
    assert "Traceback" not in kdcli.err


def test_a_spec_from_standard_input(kdcli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"net: [")))
    assert kdcli("validate", "-") == 1
    assert "KD1" in kdcli.out + kdcli.err


def test_our_own_fault_is_exit_3(kdcli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("kdcli.commands.validate.validate", broken)
    assert kdcli("validate", DIGITS) == 3
    assert "kdcli's own fault" in kdcli.err


def test_a_plugin_may_lie_in_the_working_directory(kdcli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd()))])
    Path("ournets.py").write_text(
        "from torch import nn\n"
        "class Teacher(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(64, num_classes)\n"
        "    def forward(self, image):\n"
        "        return self.fc(image.flatten(1))\n"
    )
    changes = ["teacher0.model.type=ournets:Teacher", "teacher0.model.kwargs={num_classes: 10}"]
    changes += ["mimic.teacher0.teacher_weight=null", "mimic.teacher0.allow_random=true"]
    assert kdcli("validate", DIGITS, *changes) == 1 and "--plugin ournets" in kdcli.out + kdcli.err
    assert kdcli("validate", DIGITS, *changes, "--plugin", "ournets") == 0, kdcli.out + kdcli.err
    assert kdcli("validate", DIGITS, *changes, "teacher0.model.type=gone:Teacher", "--plugin", "gone") == 1
    assert "working directory" in kdcli.out + kdcli.err
