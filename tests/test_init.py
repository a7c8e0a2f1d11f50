"""`kdcli init`: every sample is listed, and a copy is complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kdcli.commands.init import copy_sample, init
from kdcli.commands.options import InitOptions
from kdcli.commands.samples import sample_specs, summary_of
from kdcli.errors import UsageError
from kdcli.spec.parse import read

ROOT = Path(__file__).parent.parent


def test_every_sample_is_listed_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    init(InitOptions())
    printed = capsys.readouterr().out
    for name, path in sample_specs().items():
        (line,) = [line for line in printed.splitlines() if line.split(" ")[0] == name]
        assert len(summary_of(path)) > 10 and summary_of(path) in line


def test_a_copy_has_its_schema_weights_and_paths(tmp_path: Path) -> None:
    copied = copy_sample(sample_specs()["digits_kd"], tmp_path / "my")
    text = copied.read_text()
    assert text.startswith("# yaml-language-server: $schema=kdcli.schema.json\n")
    assert "sample_configs/" not in text and f"kdcli train {tmp_path.as_posix()}/my/digits_kd.yaml" in text
    assert json.loads((copied.parent / "kdcli.schema.json").read_text())["$schema"]
    assert (copied.parent / "weights/digits_teacher.safetensors").stat().st_size > 1000
    assert read(copied).spec == read(sample_specs()["digits_kd"]).spec


def test_a_copy_overwrites_nothing_unasked(tmp_path: Path) -> None:
    path = sample_specs()["digits_student"]
    copied = copy_sample(path, tmp_path)
    copied.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        copy_sample(path, tmp_path)
    assert copied.read_text() == "mine"
    copy_sample(path, tmp_path, force=True)
    assert copied.read_text() != "mine"


def test_an_unknown_sample_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        init(InitOptions(name="digit_kd"))
    assert "`digits_kd`" in (caught.value.diagnostics[0].help or "")


@pytest.mark.slow
def test_a_copy_trains(tmp_path: Path) -> None:
    """The whole command, to the report."""
    pytest.importorskip("matplotlib")
    copied = copy_sample(sample_specs()["digits_feature"], tmp_path / "my")
    command = [sys.executable, "-m", "kdcli.cli", "train", str(copied), "trainer.max_iter=3"]
    command += ["trainer.max_epoch=null", "trainer.loggers=[tensorboard]"]
    # Two threads on busy cores wait for each other far longer than they compute.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/digits_feature"
    assert "report.html" in done.stderr
    assert "trainer.max_iter=3" in done.stderr.splitlines()[-1]
    assert "finished 3 steps" in (run / "train.log").read_text()
    assert "Which layers are alike" in (run / "report.html").read_text()
    assert json.loads((run / "env.json").read_text())["run_format"] == 1
    assert list((run / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_wheel_brings_the_samples_the_pages_and_the_mark_of_its_types(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("kdcli", "sample_configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "README.md").write_text("kdcli")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    if "Cannot import 'hatchling" in done.stderr or "BackendUnavailable" in done.stderr:
        pytest.skip("hatchling is not installed here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"kdcli/py.typed", "kdcli/pages/index.md", "kdcli/pages/site.css", "kdcli/pages/site.js"} <= set(
        names
    )
    assert any(
        name.endswith("share/kdcli/sample_configs/weights/digits_teacher.safetensors") for name in names
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh"], check=True)
    python = tmp_path / "fresh/bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    code = "from kdcli.commands.samples import sample_specs; print(sample_specs()['digits_kd'])"
    paths = ":".join(path for path in sys.path if path.endswith("site-packages"))
    ran = subprocess.run(
        [python, "-I", "-c", f"import sys; sys.path += {paths.split(':')!r}; {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert str(tmp_path / "fresh/share/kdcli/sample_configs") in ran.stdout, ran.stderr


@pytest.mark.slow
def test_chromium_opens_the_report_of_a_real_run_and_loggers_go_on(tmp_path: Path) -> None:
    """Trained with an own logger and TensorBoard, resumed, shown on a phone in the dark."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    copied = copy_sample(sample_specs()["digits_feature"], tmp_path)
    (tmp_path / "mylab.py").write_text(LOGGER)
    command = [sys.executable, "-m", "kdcli.cli", "train", str(copied), "trainer.save_freq=1"]
    command += ["trainer.loggers=[tensorboard, 'mylab:Logger']", "--plugin", "mylab"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for more in (["trainer.max_epoch=1"], ["trainer.max_epoch=2", "--resume"]):
        more += ["--allow-changed", "trainer.max_epoch"] if "--resume" in more else []
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "heard.txt").read_text().splitlines() == ["begin 0 None", "end", "begin 22 it", "end"]
    page = tmp_path / "runs/digits_feature/report.html"
    shot = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,9000", "--force-dark-mode"]
    ran = subprocess.run(
        [chromium, *options, f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0 and shot.stat().st_size > 20_000
    assert "CONSOLE" not in ran.stderr


LOGGER = """
class Logger:
    def begin(self, run):
        self.say(f"begin {run.resumed_step} {run.identity}")
        return "it"
    def say(self, line):
        with open("heard.txt", "a") as file:
            file.write(line + "\\n")
    def scalars(self, step, values): ...
    def pictures(self, step, pictures): ...
    def summary(self, values): ...
    def end(self, *, finished):
        self.say("end")
"""


@pytest.mark.slow
def test_another_student_brings_its_layers(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    init(InitOptions(name="foundation_two_teachers", folder=tmp_path, student="resnet"))
    spec = read(tmp_path / "foundation_two_teachers.yaml").spec
    assert spec.net[0].type == "timm.resnet18" and spec.mimic is not None
    (job,) = spec.mimic.jobs.values()
    assert job.student.mimic_name == ("layer3", "layer4", "pooled")
    assert job.teachers["teacher0"].mimic_name == ("blocks.7", "norm:patches", "norm:class")


def test_finetune_begins_with_the_student_beside_it(tmp_path: Path) -> None:
    copy_sample(sample_specs()["foundation"], tmp_path)
    path = tmp_path / "foundation.yaml"
    path.write_text(path.read_text().replace("timm.mobilenetv4_conv_small", "timm.resnet26"))
    init(InitOptions(name="finetune", folder=tmp_path))
    spec = read(tmp_path / "finetune.yaml").spec
    assert spec.net[0].type == "timm.resnet26" and spec.net[0].kwargs == {"num_classes": 10}
    assert spec.saver.pretrain_model is not None
    assert spec.saver.pretrain_model.endswith("runs/foundation/student.safetensors")


def test_a_student_that_there_is_not(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UsageError) as caught:
        init(InitOptions(name="foundation", folder=tmp_path, student="repvitt"))
    assert "`repvit`" in (caught.value.diagnostics[0].help or "")
    with pytest.raises(UsageError, match="can't change the student of `own_images`"):
        init(InitOptions(name="own_images", folder=tmp_path, student="resnet"))
