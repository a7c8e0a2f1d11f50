"""The files of a run: found beside what names them, recorded, and the same ones when it is opened elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kdcli.analysis.collected import write_report_data
from kdcli.commands.validate import examine
from kdcli.data.build import build_source
from kdcli.errors import KdError, RunError, SpecError
from kdcli.models.network import build_network
from kdcli.models.weights import read_weights, save_safetensors
from kdcli.parallel.distributed import Processes
from kdcli.records import Notice, Saved
from kdcli.spec.parse import ParsedSpec, read
from kdcli.tasks import build_task
from kdcli.training.build import build_teachers, built
from kdcli.training.run import RunOptions
from kdcli.training.run_folder import files_taken, reopen
from kdcli.training.train import train
from tests.data.classification.test_datasets import fashion
from tests.parallel.launched import TRAIN, TWO, command
from tests.parallel.launched import prepare as launched_in
from tests.report.run_folders import make_run
from tests.training.conftest import Kdcli
from tests.training.detectors import FEATURE, detector
from tests.training.runs import DATA, SPEC

PICTURES = """\
dataset:
  train: &side
    dataset:
      type: cls
      kwargs:
        meta_file: list.txt
        image_reader: {type: fs_pillow, kwargs: {image_dir: pictures, color_mode: GRAY}}
        transformer: [{type: to_tensor}]
  test: *side
  batch_sampler: {type: base, kwargs: {batch_size: 8}}"""
TEACHER = "teacher0: {mimic_name: [logits], allow_random: true, allow_weak_teacher: true}"
WEIGHT = "teacher0: {mimic_name: [logits], teacher_weight: teacher.safetensors, allow_weak_teacher: true}"
TEXT = SPEC.replace(DATA % (40, 20), PICTURES).replace(TEACHER, WEIGHT) + "saver: {save_dir: out}\n"
NAMED = ("teacher.safetensors", "list.txt", "pictures")


def lay(folder: Path, *, seed: int = 0) -> Path:
    """The spec's files: pictures, their list, a teacher."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for number in range(16):
        Image.new("L", (8, 8), number * 16).save(folder / f"pictures/{seed}_{number}.png")
        lines.append(f"{seed}_{number}.png {number % 4}\n")
    (folder / "list.txt").write_text("".join(lines))
    (folder / "spec.yaml").write_text(TEXT)
    torch.manual_seed(seed)
    net = build_network(read(folder / "spec.yaml").spec.teachers["teacher0"], path=("net",))
    save_safetensors(net.state_dict(), folder / "teacher.safetensors")
    return folder


@pytest.fixture
def decoys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Other files of the same names; the working directory of what is done later."""
    return lay(folder / "decoys", seed=1)


def notices(parsed: ParsedSpec, **options: Any) -> list[str]:
    """What a run tells until its first checkpoint."""
    here = Processes(device=torch.device("cpu"))
    told = []
    with built(parsed, RunOptions(places=parsed.places, **options), here) as run:
        for record in train(run):
            if isinstance(record, Notice):
                told.append(record.message)
            if isinstance(record, Saved):
                break
    return told


def taken(run: Path) -> set[str]:
    """The files that a run has recorded."""
    return {str(one.file) for one in files_taken(run).values()}


def teacher_of(parsed: ParsedSpec, **options: Any) -> dict[str, torch.Tensor]:
    """The teacher's weights as the run has built it."""
    here = Processes(device=torch.device("cpu"))
    with built(parsed, RunOptions(places=parsed.places, **options), here) as run:
        return dict(run.teachers["teacher0"].net.state_dict())


def equal(one: dict[str, torch.Tensor], file: Path) -> bool:
    return all(torch.equal(one[key], value) for key, value in read_weights(file).items())


def test_what_lies_here_is_not_taken_for_what_lies_beside_the_spec(
    folder: Path, decoys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = lay(folder / "specs")
    monkeypatch.chdir(decoys)
    parsed = read("../specs/spec.yaml")
    told = [line for line in notices(parsed) if "is there twice" in line]
    assert len(told) == len(NAMED), "both sides name list and folder: each is told once"
    assert all(f"`{specs / name}` is taken, not `{decoys / name}`" in "".join(told) for name in NAMED)
    assert taken(Path("out")) == {str(specs / name) for name in NAMED}
    assert equal(teacher_of(parsed, overwrite=True), specs / "teacher.safetensors")


def test_what_lies_nowhere_else_is_taken_from_here_without_a_word(folder: Path, decoys: Path) -> None:
    lay(folder / "specs")
    for name in NAMED[:2]:
        (folder / "specs" / name).rename(folder / name)
    (folder / "specs/pictures").rename(folder / "pictures")
    parsed = read("specs/spec.yaml")
    assert not [line for line in notices(parsed) if "twice" in line]
    assert taken(Path("out")) == {str(folder / name) for name in NAMED}


def test_validate_and_eval_tell_of_two_files(kdcli: Kdcli, folder: Path, decoys: Path) -> None:
    lay(folder / "specs")
    shutil.copytree(decoys, folder, dirs_exist_ok=True)
    code, out, _ = kdcli("validate", "specs/spec.yaml")
    assert code == 0 and out.count("warning KD621") == 5, out
    assert kdcli("validate", "specs/spec.yaml", "--strict")[0] == 1
    student = build_network(read("specs/spec.yaml").spec.net, path=("net",))
    save_safetensors(student.state_dict(), Path("student.safetensors"))
    code, _, err = kdcli("eval", "specs/spec.yaml", "--weights", "student.safetensors")
    assert code == 0 and err.count("is there twice") == 3, err


def test_weights_on_the_command_line_are_looked_up_here_alone(kdcli: Kdcli, folder: Path) -> None:
    lay(folder / "specs")
    student = build_network(read("specs/spec.yaml").spec.net, path=("net",))
    save_safetensors(student.state_dict(), folder / "specs/student.safetensors")
    for name in ("eval", "export"):
        code, _, err = kdcli(name, "specs/spec.yaml", "--weights", "student.safetensors")
        assert code == 1 and "KD530" in err and f"`{folder / 'student.safetensors'}`" in err
        assert f"{folder / 'specs'}" not in err
    given = "mimic.teacher0.teacher_weight=teacher.safetensors"
    code, _, err = kdcli("train", "specs/spec.yaml", given)
    assert code == 1 and "KD530" in err and "`specs/teacher.safetensors` lies beside the spec" in err


@pytest.fixture
def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose files lay in its working directory; now this is another one, full of broken decoys."""
    specs, work = lay(folder / "specs"), folder / "work"
    work.mkdir()
    for name in NAMED:
        (specs / name).rename(work / name)
    monkeypatch.chdir(work)
    notices(read("../specs/spec.yaml"))
    there = folder / "there"
    (there / "pictures").mkdir(parents=True)
    for name in NAMED[:2]:
        (there / name).write_text("nothing of use")
    monkeypatch.chdir(there)
    return work / "out"


def test_a_run_evaluated_elsewhere(elsewhere: Path, kdcli: Kdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(elsewhere.parents[1] / "there")
    code, out, err = kdcli("eval", str(elsewhere), "--format", "json")
    assert code == 0, err
    assert [row["network"] for row in json.loads(out)["networks"]] == ["student", "teacher0"]
    work, there = elsewhere.parent, Path.cwd()
    for name in NAMED:
        assert f"`{work / name}` is taken, not `{there / name}`; the run took it when it was started" in err


def test_a_run_exported_and_reported_elsewhere(
    elsewhere: Path, kdcli: Kdcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere.parents[1] / "there")
    code, out, err = kdcli("export", str(elsewhere), "--format", "safetensors")
    assert code == 0 and "8 test images" in out, err
    run = reopen(elsewhere)
    path, told = write_report_data(run.parsed, run.options, torch.device("cpu"))
    assert told == []
    networks = [row["network"] for row in json.loads(path.read_text())["comparison"]]
    assert networks == ["student", "teacher0"]


def test_a_run_whose_file_is_gone(elsewhere: Path, kdcli: Kdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is taken with a warning, none is told with what the run took."""
    monkeypatch.chdir(elsewhere.parents[1] / "there")
    gone = elsewhere.parent / "teacher.safetensors"
    gone.rename("teacher.safetensors")
    code, out, err = kdcli("eval", str(elsewhere))
    assert code == 0 and f"the run took `{gone}` for `teacher.safetensors`, which is gone" in err
    assert "teacher0" in out
    Path("teacher.safetensors").unlink()
    code, out, err = kdcli("eval", str(elsewhere))
    assert code == 0 and "teacher0 is left out: no weights file `teacher.safetensors`" in err
    with pytest.raises(SpecError) as caught:
        run = reopen(elsewhere)
        build_teachers(run.parsed.spec, run.options)
    assert f"the run took `{gone}`" in (caught.value.diagnostics[0].help or "")


def test_a_run_resumed_elsewhere(elsewhere: Path, folder: Path) -> None:
    """By `--resume`, by its checkpoint's path, and by `auto_resume`; a path that the spec changes is its own."""
    spec, work = folder / "specs/spec.yaml", elsewhere.parent
    here = f"saver.save_dir={elsewhere}"
    checkpoint = max((elsewhere / "checkpoints").glob("*.pt"))
    for changes, options in (
        ([here], {"resume": True}),
        ([here, "saver.auto_resume=true"], {}),
        (["saver.save_dir=next"], {"resume": checkpoint}),
        (["saver.save_dir=next"], {"resume": checkpoint.parent}),
        (["saver.save_dir=next"], {"resume": elsewhere}),
    ):
        assert equal(teacher_of(read(spec, changes), **options), work / "teacher.safetensors")
    shutil.copyfile(work / "teacher.safetensors", "own.safetensors")
    assert any("continuing" in line for line in notices(read(spec, [here]), resume=True))
    assert taken(elsewhere) == {str(work / name) for name in NAMED}
    changed = read(spec, [here, "mimic.teacher0.teacher_weight=own.safetensors"])
    assert notices(changed, resume=True, allow_changed=("mimic.teacher0.teacher_weight",))
    assert str(Path("own.safetensors").resolve()) in taken(elsewhere)


def test_a_run_started_anew_looks_anew(elsewhere: Path, folder: Path) -> None:
    with pytest.raises(KdError) as caught:
        teacher_of(read(folder / "specs/spec.yaml", [f"saver.save_dir={elsewhere}"]), overwrite=True)
    assert (
        "`teacher.safetensors` can't be read as weights" in caught.value.diagnostics[0].message
    )  # the decoy here


def test_a_checkpoint_that_the_spec_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = lay(folder / "specs")
    monkeypatch.chdir(specs)
    notices(read("spec.yaml"))
    (specs / "out/checkpoints").rename(specs / "start")
    text = TEXT.replace("save_dir: out", "save_dir: out, resume_model: start")
    (specs / "spec.yaml").write_text(text)
    monkeypatch.chdir(folder)
    assert any("continuing at step 2" in line for line in notices(read("specs/spec.yaml")))
    with pytest.raises(SpecError) as caught:
        notices(read("specs/spec.yaml", ["saver.resume_model=start", "saver.save_dir=more"]))
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("KD718", ("saver", "resume_model"))
    assert "`specs/start` lies beside the spec" in (found.help or "")
    (specs / "spec.yaml").write_text(text.replace("model: start", "model: strat").replace("out,", "two,"))
    with pytest.raises(SpecError) as caught:
        notices(read("specs/spec.yaml"))
    assert (caught.value.diagnostics[0].help or "") == (
        f"there is no `{specs / 'strat'}` nor `{folder / 'strat'}`; did you mean `start`?"
    )


def test_a_record_that_is_broken(folder: Path) -> None:
    run = folder / "run"
    make_run(run)
    assert files_taken(run) == {}, "a run of before kdcli kept them"
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps({**env, "files": [{"path": "x"}]}))
    with pytest.raises(RunError, match=r"KD752.*files"):
        reopen(run)


@pytest.mark.slow
def test_several_processes_take_the_same_files(folder: Path) -> None:
    """The launcher's workers get the command line again: what it gives is looked up here, the rest there."""
    place = launched_in(folder / "two")
    (place / "specs").mkdir()
    lay(folder / "files")
    for name in NAMED:
        (folder / "files" / name).rename(place / "specs" / name)
    (place / "specs/teacher.safetensors").rename(place / "teacher.safetensors")
    (place / "teacher.safetensors").rename(place / "given.safetensors")
    (place / "specs/small.yaml").write_text(TEXT)
    words = ["train", "specs/small.yaml", *TRAIN[4:], *TWO]
    given = "mimic.teacher0.teacher_weight=given.safetensors"
    done = command(place, *words, "trainer.max_epoch=1", given)
    assert done.code() == 0, done.screen()
    assert taken(place / "out") == {
        str(place / name) for name in ("specs/list.txt", "specs/pictures", "given.safetensors")
    }


INCLUDED = {
    "cls": "meta_file: [list.txt], image_reader: {type: fs_opencv, kwargs: {image_dir: [pictures]}}",
    "image_folder": "root: classes",
    "fashion_mnist": "root: garments",
    "torchvision.ImageFolder": "root: classes",
    "coco": "meta_file: boxes.json, image_reader: {type: fs_pillow, kwargs: {image_dir: pictures}}",
}


@pytest.mark.parametrize("kind", INCLUDED)
def test_every_dataset_finds_its_files_beside_the_file_that_names_them(folder: Path, kind: str) -> None:
    parts = lay(folder / "specs/parts")
    (parts / "classes/a").mkdir(parents=True)
    shutil.copyfile(parts / "pictures/0_0.png", parts / "classes/a/x.png")
    (parts / "garments").mkdir()
    fashion(parts / "garments")
    image = {"id": 1, "file_name": "0_0.png", "height": 8, "width": 8}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
    boxes = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "it"}]}
    (parts / "boxes.json").write_text(json.dumps(boxes))
    kwargs = f"{{{INCLUDED[kind]}, transformer: [{{type: to_tensor}}]}}"
    (parts / "data.yaml").write_text(f"type: {kind}\nkwargs: {kwargs}\n")
    data = DATA % (40, 20)
    start, end = data.index("    dataset:"), data.index("  test:")
    text = SPEC.replace(data, data[:start] + "    dataset: !include parts/data.yaml\n" + data[end:])
    (folder / "specs/spec.yaml").write_text(text)
    parsed = read("specs/spec.yaml")
    part, path = parsed.spec.dataset.train, ("dataset", "train")
    assert len(build_source(part, train=True, path=path, places=parsed.places)) > 0
    with pytest.raises(KdError):
        build_source(part, train=True, path=path)


def test_the_truth_that_boxes_are_measured_by(folder: Path) -> None:
    (folder / "specs").mkdir()
    evaluator = "evaluator: {type: COCO, kwargs: {gt_file: truth.json"
    text = detector(FEATURE).replace("evaluator: {type: COCO, kwargs: {", evaluator + ", ")
    assert evaluator in text
    (folder / "specs/spec.yaml").write_text(text)
    for place in ("truth.json", "specs/truth.json"):
        Path(place).write_text("{}")
    parsed = read("specs/spec.yaml")
    task = build_task(parsed.spec, parsed.places)
    assert getattr(task, "gt_file") == "specs/truth.json"  # noqa: B009
    Path("specs/truth.json").unlink()
    Path("truth.json").rename("trth.json")
    found = examine("specs/spec.yaml", files="full")[0]
    (missing,) = [one for one in found if "no file `truth.json`" in one.message]
    assert missing.code == "KD560" and "did you mean `trth.json`?" in (missing.help or "")


def test_pretrained_weights_beside_the_spec(folder: Path) -> None:
    lay(folder / "specs")
    text = TEXT.replace("save_dir: out", "save_dir: out, pretrain_model: start.safetensors")
    (folder / "specs/spec.yaml").write_text(text)
    parsed = read("specs/spec.yaml")
    net = build_network(parsed.spec.net, path=("net",))
    save_safetensors(net.state_dict(), folder / "specs/start.safetensors")
    here = Processes(device=torch.device("cpu"))
    with built(parsed, RunOptions(places=parsed.places), here) as run:
        assert equal(dict(run.student.state_dict()), folder / "specs/start.safetensors")


@pytest.mark.slow
def test_a_key_on_the_command_line_says_where_the_student_lies(kdcli: Kdcli, folder: Path) -> None:
    lay(folder / "specs")
    student = build_network(read("specs/spec.yaml").spec.net, path=("net",))
    state = student.state_dict()
    twins = {f"{side}.{name}": tensor for side in ("first", "second") for name, tensor in state.items()}
    torch.save({"nets": {"mine": state}, "model": twins}, folder / "nested.pth")
    given = ("specs/spec.yaml", "--weights", "nested.pth")
    code, _, err = kdcli("eval", *given)
    assert code == 1 and "KD548" in err and "name the one to read: `--weight-key model.first`" in err
    code, _, err = kdcli("eval", *given, "--weight-key", "nets.mina")
    assert code == 1 and "KD547: `nested.pth` has no tensors under `nets.mina`" in err and "nets.mine" in err
    code, out, err = kdcli("eval", *given, "--weight-key", "nets.mine", "--format", "json")
    assert code == 0 and json.loads(out)["networks"][0]["network"] == "student", err
    code, out, err = kdcli("export", *given, "--weight-key", "model.second", "--format", "safetensors")
    assert code == 0 and "nested.pth" in out, err
    code, _, err = kdcli("eval", "specs/spec.yaml", "--weight-key", "nets.mine")
    assert code == 2 and "there is no `--weights`" in err
