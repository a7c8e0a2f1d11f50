"""The doorway's small commands: version, doctor, completion, and bad input to report, compare and export."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdcli import __version__
from kdcli.cli import COMMANDS, app
from kdcli.commands import guarded
from kdcli.commands.completion import complete_key, complete_spec
from kdcli.commands.init import copy_sample
from kdcli.commands.options import CompareOptions, ReportOptions
from kdcli.commands.report import compare, report
from kdcli.commands.samples import sample_specs
from kdcli.errors import KdError
from kdcli.reference.doctor import EXTRAS


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5 and (COMMANDS[command][0].__doc__ or "?")[:40] in result.output


def test_doctor_tells_what_is_there_and_what_is_not() -> None:
    text = CliRunner().invoke(app, ["doctor"]).output
    for word in ("kdcli", "torch ", "cpu", "cuda", "free disk", "extra onnx", "extra report"):
        assert word in text
    facts = json.loads(CliRunner().invoke(app, ["doctor", "--format", "json"]).output)
    assert facts["packages"]["torch"] and "mlflow" in facts["extras"]
    assert facts["cuda"].keys() == {"built_for", "cudnn", "nccl", "driver", "visible", "devices"}
    assert os.environ.get("HOME", "/nowhere") not in text and facts["broken"] == {}


BROKEN = 'raise ImportError("libtorch_nvshmem.so: undefined symbol: nvshmem_x")'


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("torch", "error KD797: torch can't be imported: ImportError: libtorch_nvshmem.so: undefined symbol"),
        pytest.param(
            "torchvision", "error KD797: torchvision can't be imported: ImportError", marks=pytest.mark.slow
        ),
        pytest.param(
            None,
            "error KD797: torch can't be imported: ModuleNotFoundError: import of torch halted",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_broken_installation_is_told_and_doctor_still_answers(
    broken: str | None, said: str, tmp_path: Path
) -> None:
    if broken is None:
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    else:
        (tmp_path / broken).mkdir()
        (tmp_path / broken / "__init__.py").write_text(BROKEN)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    spec = Path(__file__).parents[1] / "sample_configs" / "fashion_kd.yaml"

    def kdcli(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "kdcli.cli", *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "300"},
        )
        return done.returncode, done.stdout + done.stderr

    code, output = kdcli("validate", str(spec))
    assert code == 1 and said in output and "Traceback" not in output, output
    code, output = kdcli("doctor")
    assert code == 0 and f"BROKEN: {said.partition('imported: ')[2]}" in output and "extra onnx" in output


@pytest.mark.slow
def test_a_file_that_hides_a_module_of_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("class Loss: pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "kdcli.cli", "validate", str(sample_specs()["fashion_kd"])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "300"},
    )
    assert done.returncode == 1 and "error KD797: torch can't be imported" in done.stderr, done.stderr
    assert f"help: `{tmp_path / 'queue.py'}` hides Python's own module `queue`" in done.stderr


def test_doctor_tells_of_a_cudnn_that_torch_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> int:
        raise RuntimeError(
            "cuDNN version incompatibility: compiled against 9.26, found 9.24. One option is more."
        )

    monkeypatch.setattr("torch.version.cuda", "13.2")
    monkeypatch.setattr("torch.backends.cudnn.version", version)
    text = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "300"}).output
    assert "cuDNN BROKEN: cuDNN version incompatibility: compiled against 9.26, found 9.24," in text


def test_specs_folders_and_keys_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = copy_sample(sample_specs()["digits_kd"], tmp_path / "my")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").touch()
    assert complete_spec("") == ["my/"]
    assert complete_spec("my/d") == ["my/digits_kd.yaml"]
    assert complete_spec("my/w") == ["my/weights/"]
    assert complete_key(str(spec), "net.") == ["net.model."]
    assert "net.model.kwargs.widths." in complete_key(str(spec), "net.model.kwargs.w")
    assert complete_key(str(spec), "trainer.max_e") == ["trainer.max_epoch="]
    assert complete_key("no.yaml", "net.") == [] == complete_key(str(spec), "a=b")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    environment = {**os.environ, "_KDCLI_COMPLETE": f"source_{shell}"}
    code = "from kdcli.cli import app; app(prog_name='kdcli')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "_KDCLI_COMPLETE" in done.stdout or "_kdcli" in done.stdout


def test_a_key_is_completed_through_the_shell(tmp_path: Path) -> None:
    spec = copy_sample(sample_specs()["digits_kd"], tmp_path)
    words = f"kdcli train {spec} net.m"
    environment = {**os.environ, "_KDCLI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    code = "from kdcli.cli import app; app(prog_name='kdcli')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["net.model."], done.stderr


def half_written(folder: Path) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "losses": {"a')
    (folder / "spec.resolved.yaml").write_text("runtime: {random_seed: [")
    return folder


def of_another_version(folder: Path) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    (folder / "spec.resolved.yaml").write_text("net: []")
    (folder / "env.json").write_text('{"run_format": 9, "kdcli": "4.0"}')
    return folder


def test_a_bad_folder_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        "KD750": tmp_path / "empty",
        "KD752": half_written(tmp_path / "half"),
        "KD753": of_another_version(tmp_path / "new"),
    }
    for code, folder in cases.items():
        for action in (
            lambda folder=folder: report(ReportOptions(spec=str(folder), device="cpu", quick=True)),
            lambda folder=folder: compare(CompareOptions(runs=(folder,))),
        ):
            with pytest.raises(KdError) as caught:
                action()
            assert [found.code for found in caught.value.diagnostics] == [code]
            assert guarded(action) == 1
            assert "Traceback" not in capsys.readouterr().err


def test_export_of_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path)])
    assert isinstance(result.exception, KdError)
    assert result.exception.diagnostics[0].code == "KD750"


def test_doctor_knows_every_extra() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    packages = {
        name: {re.split(r"[<>=]", package)[0] for package in needs}
        for name, needs in extras.items()
        if name != "dev"
    }
    assert packages == {name: set(modules) for name, modules in EXTRAS.items()}
    (own,) = [need for need in extras["dev"] if need.startswith("kdcli[")]
    assert set(re.findall(r"\w+", own)[1:]) == set(extras) - {"dev", "mlflow", "opencv", "wandb"}
