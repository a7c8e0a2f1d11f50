"""Which folder a run writes to: its name, `~`, and folders that are no run's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdcli.errors import KdError, RunError
from kdcli.records import Saved, Step
from kdcli.report.run_files import MetricsWriter
from kdcli.spec.parse import read
from kdcli.training.build import run_name, run_root
from kdcli.training.checkpoint import checkpoints
from kdcli.training.claim import LOCK
from kdcli.training.run_folder import refuse_foreign, strangers
from kdcli.training.train import train
from tests.report.run_folders import make_run
from tests.training.conftest import Kdcli
from tests.training.runs import SPEC, run_of, spec_of, train_all

OUT = Path("out")
RECORD = {"kind": "step", "step": 1, "total_steps": 9, "losses": {}, "time": 0.0}


def code_of(error: RunError) -> str:
    return error.diagnostics[0].code


# folders that are no run's


def written(**files: str) -> Callable[[], None]:
    """Makes a folder with these files; `__` stands for a dot, a name with `/` lies in a folder of its own."""

    def make() -> None:
        for name, text in files.items():
            path = OUT / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


FOREIGN = {
    "notes": (written(**{"notes.txt": "mine"}), ["notes.txt"]),
    "files called like a run's": (
        written(
            **{
                "env.json": '{"kdcli": "0.2.0", "python": "3.11"}',
                "spec.yaml": "a: 1",
                "student.safetensors": "x",
            }
        ),
        ["env.json", "spec.yaml", "student.safetensors"],
    ),
    "metrics of another tool": (
        written(**{"metrics.jsonl": '{"step": 1, "time": 2, "kind": "train"}\n', "train.log": "epoch 1"}),
        ["metrics.jsonl", "train.log"],
    ),
    "checkpoints of another tool": (written(**{"checkpoints/model.pt": "x"}), ["checkpoints"]),
    "a folder of runs": (
        written(**{"digits/env.json": json.dumps({"kdcli": "1", "run_format": 1})}),
        ["digits"],
    ),
    "a lock of another tool": (written(**{".lock": "pid 7"}), [".lock"]),
    "a cache of another tool": (written(**{"cache/pip": ""}), ["cache"]),
    "json that is none": (written(**{"env.json": "[" * 100_000}), ["env.json"]),
}

OWN = {
    "nothing": lambda: OUT.mkdir(),
    "hidden files": written(**{".gitignore": "*", "lost+found/x": ""}),
    "a run of 0.2.0": lambda: make_run(OUT),
    "its lock alone": written(**{".lock": '{"kdcli": "0.3"}', "notes.txt": "mine"}),
    "its env.json alone": written(**{"env.json": json.dumps({"kdcli": "0.2.0", "run_format": 1})}),
    "its metrics alone": written(**{"metrics.jsonl": json.dumps(RECORD) + "\n", "train.log": "step 1"}),
    "a checkpoint alone": written(**{"checkpoints/step_00000005-0123456789abcdef.pt": "x"}),
    "a killed start": written(
        **{"metrics.jsonl": "", "train.log": "starting", "checkpoints/step_1.pt.7.tmp": "x"}
    ),
    "a cache made before": written(**{"cache/teacher0-0123456789abcdef/meta.json": "{}"}),
    "a profile made before": written(**{"profile/env.json": json.dumps({"kdcli": "0.2.0", "run_format": 1})}),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_that_is_no_runs_is_refused(case: str) -> None:
    make, names = FOREIGN[case]
    make()
    assert strangers(OUT) == names
    with pytest.raises(RunError) as caught:
        refuse_foreign(OUT)
    (found,) = caught.value.diagnostics
    assert found.code == "KD771" and all(f"`{name}`" in found.message for name in names)


@pytest.mark.parametrize("case", OWN)
def test_a_runs_own_folder_is_none_of_these(case: str) -> None:
    OWN[case]()
    assert strangers(OUT) == []
    refuse_foreign(OUT)


def test_a_pipe_in_place_of_a_mark_is_not_waited_for() -> None:
    OUT.mkdir()
    os.mkfifo(OUT / "env.json")
    assert strangers(OUT) == ["env.json"]


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}, {"profile": 1}])
def test_nothing_of_the_users_own_is_touched(options: dict[str, Any]) -> None:
    root = OUT / "profile" if options.get("profile") else OUT
    root.mkdir(parents=True)
    for name in ("env.json", "spec.yaml", "metrics.jsonl", "student.safetensors", "notes.txt"):
        (root / name).write_text(f"the user's {name}")
    before = {path: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(RunError) as caught:
        train_all(spec_of(SPEC, "saver.save_dir=out"), **options)
    assert code_of(caught.value) == "KD771"
    assert caught.value.diagnostics[0].message == (
        f"{root} is no run's folder: it holds `env.json`, `metrics.jsonl`, `notes.txt` and 2 more"
    )
    assert {path: path.read_bytes() for path in root.iterdir()} == before


def test_a_link_is_refused_before_anything_is_written_behind_it() -> None:
    Path("real").mkdir()
    OUT.symlink_to("real")
    with pytest.raises(RunError) as caught:
        train_all(spec_of(SPEC, "saver.save_dir=out"))
    assert code_of(caught.value) == "KD743" and list(Path("real").iterdir()) == []


def test_a_file_in_place_of_the_folder() -> None:
    OUT.write_text("mine")
    with pytest.raises(KdError, match="KD740: cannot write out: it is a file"):
        train_all(spec_of(SPEC, "saver.save_dir=out"))
    assert OUT.read_text() == "mine"


def test_a_run_from_before_the_lock_goes_on() -> None:
    short = spec_of(SPEC, "saver.save_dir=out")
    with run_of(short) as run:
        for record in train(run):
            if isinstance(record, Saved):
                break
    (OUT / LOCK).unlink()
    assert train_all(short, resume=True)[-1].step == 10  # type: ignore[union-attr]
    assert json.loads((OUT / LOCK).read_text())["pid"] == os.getpid()


# the run folder goes away


def test_a_run_whose_folder_is_deleted_stops_at_the_next_write() -> None:
    with run_of(spec_of(SPEC, "saver.save_dir=out", "trainer.log_freq=1")) as run:
        steps = []
        with pytest.raises(RunError) as caught:
            for record in train(run):
                if isinstance(record, Step):
                    steps.append(record.step)
                    if record.step == 2:
                        shutil.rmtree(OUT)
        assert code_of(caught.value) == "KD772" and steps == [1, 2]
    assert not OUT.exists()


def test_a_run_whose_folder_is_deleted_at_the_last_step_has_not_finished() -> None:
    with (
        run_of(spec_of(SPEC, "saver.save_dir=out", "trainer.log_freq=1")) as run,
        pytest.raises(RunError) as caught,
    ):
        for record in train(run):
            if isinstance(record, Saved) and record.step == 10:
                OUT.rename("elsewhere")
    assert code_of(caught.value) == "KD772"
    assert not OUT.exists() and not Path("elsewhere/finished.json").exists()


def test_metrics_that_were_deleted_are_not_written_into_the_void() -> None:
    record = Saved(step=1, path=Path("x"))
    with MetricsWriter(Path("out/metrics.jsonl")) as metrics:
        metrics.write(record)
        Path("out/metrics.jsonl").unlink()
        with pytest.raises(RunError, match=r"out/metrics\.jsonl was deleted") as caught:
            metrics.write(record)
        assert code_of(caught.value) == "KD772"


# names


@pytest.mark.parametrize(
    "words, root",
    [
        ((), "runs/small"),
        (("runtime.random_seed=2",), "runs/small-seed2"),
        (("runtime.random_seed=3",), "runs/small-seed3"),  # the file's own
        (("runtime={random_seed: 4, runner: {type: kd}}",), "runs/small-seed4"),
        (("runtime.random_seed=2", "runtime.random_seed=5"), "runs/small-seed5"),
        (("runtime.random_seed=",), "runs/small"),
        (("runtime.threads=2",), "runs/small"),
        (("trainer.max_epoch=7",), "runs/small"),
        (("runtime.random_seed=2", "saver.save_dir=here"), "here"),
        (("runtime.random_seed=2", "saver.auto_resume=true"), "runs/small-seed2"),
    ],
)
def test_a_seed_on_the_command_line_has_a_folder_of_its_own(words: tuple[str, ...], root: str) -> None:
    parsed = spec_of(SPEC, *words)
    assert run_root(parsed) == Path(root)
    # The spec that the run writes down leads to the same folder.
    assert run_root(spec_of(parsed.resolved_yaml(), source="spec.resolved.yaml")) == Path(root)


def test_a_seed_in_a_building_block_is_the_command_lines_too() -> None:
    text = "seed: &seed 3\n" + SPEC.replace("random_seed: 3", "random_seed: *seed")
    assert run_root(spec_of(text)) == Path("runs/small")
    assert run_root(spec_of(text, "seed=6")) == Path("runs/small-seed6")


def test_the_figures_of_a_sweep_do_not_replace_each_other() -> None:
    for seed in (1, 2):
        words = (f"runtime.random_seed={seed}", "saver.results_dir=figures", "trainer.max_iter=1")
        assert run_name(spec_of(SPEC, *words)) == f"small-seed{seed}"
        train_all(spec_of(SPEC, *words))
    assert {path.name for path in Path("figures").iterdir()} == {"small-seed1.json", "small-seed2.json"}
    assert {path.name for path in Path("runs").iterdir()} == {"small-seed1", "small-seed2"}


@pytest.mark.slow
def test_eval_report_and_resume_find_a_seeds_run_by_the_same_words(kdcli: Kdcli) -> None:
    Path("small.yaml").write_text(SPEC)
    words = ("small.yaml", "runtime.random_seed=2", "trainer.max_epoch=1", "saver.auto_resume=false")
    train_all(read(words[0], words[1:]))
    assert checkpoints(Path("runs/small-seed2/checkpoints"))
    code, out, err = kdcli("eval", *words, "--device", "cpu")
    assert code == 0 and "top1" in out and "runs/small-seed2/student_best.safetensors" in err
    code, out, err = kdcli("report", *words, "--quick")
    assert code == 1 and "KD751: runs/small-seed2 has no step" in err  # train_all writes no metrics
    code, out, err = kdcli("train", *words, "--device", "cpu", "--resume", "--no-report")
    assert code == 0 and "continuing at step 5" in err and not Path("runs/small").exists()


def test_report_of_a_folder_takes_no_values(kdcli: Kdcli) -> None:
    make_run(OUT)
    code, _, err = kdcli("report", "out", "runtime.random_seed=2", "--quick")
    assert code == 2 and "a run's spec can't be changed" in err


# ~


def test_a_tilde_is_the_home_folder_wherever_a_run_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    home = Path("home").absolute()
    parsed = spec_of(
        SPEC,
        "saver.save_dir=~/x",
        "saver.results_dir=~/figures",
        "trainer.max_iter=1",
        "mimic.teacher0.cache={dir: ~/c}",
    )
    assert run_root(parsed) == home / "x"
    train_all(parsed)
    assert (home / "x/finished.json").is_file() and (home / "figures/small.json").is_file()
    assert [path.name.startswith("teacher0-") for path in (home / "c").iterdir()] == [True]
    assert not Path("~").exists()


def test_a_tilde_after_an_equals_sign_of_an_option(monkeypatch: pytest.MonkeyPatch, kdcli: Kdcli) -> None:
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    make_run(Path("home/run"))
    Path("small.yaml").write_text(SPEC)
    code, _, err = kdcli("report", "small.yaml", "saver.save_dir=~/none", "--quick")
    assert code == 1 and f"there is no folder {Path('home/none').absolute()}" in err
    code, _, err = kdcli("compare", "~/none")
    assert code == 1 and f"there is no folder {Path('home/none').absolute()}" in err
    code, _, err = kdcli("train", "small.yaml", "--resume=~/run", "--device", "cpu", "--no-check")
    assert code == 1 and f"there is no valid checkpoint in {Path('home').absolute()}" in err
