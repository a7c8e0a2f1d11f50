"""Places: beside the file that writes a path, then the working directory; arguments in the latter alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kdcli.errors import SpecError, SpecPath
from kdcli.spec.parse import ParsedSpec, read
from kdcli.spec.places import HERE, Places, Taken, files_named, taken_from
from tests.spec.specs import BASE, changed

WEIGHT: SpecPath = ("mimic", "jobs", "mimic_job0", "teachers", "teacher0", "teacher_weight")
IMAGES: SpecPath = ("dataset", "train", "dataset", "kwargs", "image_reader", "kwargs", "image_dir")
OVERRIDE = "mimic.teacher0.teacher_weight=teacher.pth"


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spec's folder; the working directory is `here` beside it."""
    for name in ("specs", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "specs"


def parsed(specs: Path, *changes: str, text: str = BASE) -> ParsedSpec:
    (specs / "cfg.yaml").write_text(text)
    return read(specs / "cfg.yaml", changes)


def put(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("")


def told(found: ParsedSpec, places: Places | None = None) -> list[tuple[str, SpecPath | None]]:
    return [(one.code, one.path) for one in (places or found.places).findings(found.spec)]


def test_beside_the_spec_then_here(specs: Path) -> None:
    places = parsed(specs).places
    assert places.find("teacher.pth", WEIGHT) == Path("teacher.pth")
    put(Path("teacher.pth"))
    assert places.find("teacher.pth", WEIGHT) == Path("teacher.pth")
    put(specs / "teacher.pth")
    assert places.find("teacher.pth", WEIGHT) == specs / "teacher.pth"


@pytest.mark.parametrize(
    "change", [OVERRIDE, "mimic.teacher0={mimic_name: [head.classifier], teacher_weight: teacher.pth}"]
)
def test_what_the_command_line_gives_is_looked_up_here_alone(specs: Path, change: str) -> None:
    found = parsed(specs, change)
    put(specs / "teacher.pth")
    assert not found.places.find("teacher.pth", WEIGHT).exists()
    help = found.places.missing("teacher.pth", WEIGHT)
    here = specs.parent / "here"
    assert help.startswith(f"there is no `{here / 'teacher.pth'}`; `{specs / 'teacher.pth'}` lies beside")
    put(Path("teacher.pth"))
    assert found.places.find("teacher.pth", WEIGHT) == Path("teacher.pth")
    assert told(found) == []


def test_one_element_of_a_list_from_the_command_line(specs: Path) -> None:
    folders = ("image_dir: images", "image_dir: [a, b]")
    found = parsed(
        specs, "dataset.train.dataset.kwargs.image_reader.kwargs.image_dir.1=b", text=changed(folders)
    )
    put(specs / "a" / "x", specs / "b" / "x", Path("a/x"), Path("b/x"))
    assert found.places.find("a", (*IMAGES, 0)) == specs / "a"
    assert found.places.find("b", (*IMAGES, 1)) == Path("b")


def test_an_included_file_has_its_own_folder(specs: Path) -> None:
    put(specs / "teacher.pth", specs / "parts" / "teacher.pth")
    lines = "    mimic_name: [head.classifier]\n    teacher_weight: teacher.pth\n"
    text = changed((f"  teacher0:\n{lines}", "  teacher0: !include parts/outer.yaml\n"))
    (specs / "parts" / "outer.yaml").write_text("!include deeper/teacher.yaml\n")
    put(specs / "parts" / "deeper" / "teacher.pth")
    (specs / "parts" / "deeper" / "teacher.yaml").write_text(
        "mimic_name: [head.classifier]\nteacher_weight: teacher.pth\n"
    )
    found = parsed(specs, text=text)
    assert found.places.find("teacher.pth", WEIGHT) == specs / "parts" / "deeper" / "teacher.pth"
    assert found.places.find("teacher.pth", IMAGES) == specs / "teacher.pth"
    (specs / "parts" / "deeper" / "teacher.pth").unlink()
    assert not found.places.find("teacher.pth", WEIGHT).exists()
    put(Path("teacher.pth"))
    overridden = parsed(specs, OVERRIDE, text=text).places
    assert overridden.find("teacher.pth", WEIGHT) == Path("teacher.pth")


def test_an_alias_counts_where_its_anchor_is_written(specs: Path) -> None:
    weight = "teacher_weight: teacher.pth"
    text = changed((weight, "teacher_weight: *weight"), ("x-note: anything at all", "x-note: &weight t.pth"))
    put(specs / "t.pth", Path("t.pth"))
    assert parsed(specs, text=text).places.find("t.pth", WEIGHT) == specs / "t.pth"
    assert parsed(specs, "x-note=t.pth", text=text).places.find("t.pth", WEIGHT) == Path("t.pth")


def test_a_spec_whose_name_begins_like_an_argument(specs: Path) -> None:
    put(specs / "teacher.pth")
    os.chdir(specs.parent)
    (specs / "arguments.yaml").write_text(BASE)
    places = read("specs/arguments.yaml").places
    assert places.find("teacher.pth", WEIGHT) == Path("specs/teacher.pth")


def test_absolute_and_home(specs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(specs))
    put(specs / "teacher.pth", Path("teacher.pth"))
    places = Places(Path("elsewhere"))
    assert places.find("~/teacher.pth", WEIGHT) == specs / "teacher.pth"
    assert places.tried(str(specs / "no.pth"), WEIGHT) == (specs / "no.pth",)
    with pytest.raises(SpecError, match="there is no user `nobody-of-that-name`"):
        places.find("~nobody-of-that-name/x", WEIGHT)
    assert HERE.tried("teacher.pth", WEIGHT) == (Path("teacher.pth"),)


def test_a_name_that_no_file_can_have(specs: Path) -> None:
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(SpecError) as caught:
            parsed(specs).places.find(name, WEIGHT)
        (found,) = caught.value.diagnostics
        assert (found.code, found.path) == ("KD521", WEIGHT)


def test_what_is_missing_is_told_with_both_places_and_the_nearest_name(specs: Path) -> None:
    put(specs / "w" / "techer.pth", specs / "w" / "student.pth")
    here = specs.parent / "here"
    assert parsed(specs).places.missing("w/teacher.pth", WEIGHT) == (
        f"there is no `{specs / 'w/teacher.pth'}` nor `{here / 'w/teacher.pth'}`; "
        "did you mean `w/techer.pth`?"
    )
    assert parsed(specs).places.missing("w", WEIGHT) == f"`{specs / 'w'}` is a folder"


def test_two_files_are_told(specs: Path) -> None:
    found = parsed(specs)
    put(specs / "teacher.pth")
    assert told(found) == []
    put(Path("teacher.pth"))
    assert told(found) == [("KD621", WEIGHT)]
    (one,) = found.places.findings(found.spec)
    here = specs.parent / "here"
    assert f"`{specs / 'teacher.pth'}` is taken, not `{here / 'teacher.pth'}`" in one.message
    assert one.severity == "warning"
    Path("teacher.pth").unlink()
    Path("teacher.pth").symlink_to(specs / "teacher.pth")
    assert told(found) == []


def test_files_of_jobs_in_two_files(specs: Path) -> None:
    """By the same words, two jobs may mean two files; a teacher has one."""
    one = "cfgs: {loss: {type: kd_loss}}\nstudent: {mimic_name: [head.classifier]}\n"
    teacher = "teacher0: {mimic_name: [head.classifier], teacher_weight: teacher.pth}\n"
    start, end = BASE.index("mimic:\n"), BASE.index("dataset:\n")
    jobs = "mimic: {mimic_as_jobs: true, mimic_job0: !include a.yaml, mimic_job1: !include b/b.yaml}\n\n"
    put(specs / "b" / "teacher.pth", specs / "teacher.pth")
    (specs / "a.yaml").write_text(one + teacher)
    (specs / "b" / "b.yaml").write_text(one + teacher)
    found = parsed(specs, text=BASE[:start] + jobs + BASE[end:])
    path = ("mimic", "jobs", "mimic_job1", "teachers", "teacher0", "teacher_weight")
    assert told(found) == [("KD304", path)]
    (specs / "b" / "teacher.pth").unlink()
    (specs / "b" / "teacher.pth").symlink_to(specs / "teacher.pth")
    assert told(found) == []


def test_a_record_wins_elsewhere(specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parsed(specs)
    put(Path("teacher.pth"), Path("images/x"))
    rows = json.loads(json.dumps(found.places.record(found.spec)))
    before = tmp_path / "here" / "teacher.pth"
    assert {tuple(row["path"]): row["taken"] for row in rows} == {
        WEIGHT: str(before),
        IMAGES: str(tmp_path / "here" / "images"),
    }
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    again = replace(found.places, taken=taken_from(rows))
    assert again.find("teacher.pth", WEIGHT) == before and told(found, again) == []
    put(Path("teacher.pth"))
    assert again.find("teacher.pth", WEIGHT) == before and told(found, again) == [("KD621", WEIGHT)]
    assert again.find("other.pth", WEIGHT) == Path("other.pth"), "the record is of another name"
    before.unlink()
    assert again.find("teacher.pth", WEIGHT) == Path("teacher.pth")
    assert told(found, again) == [("KD622", WEIGHT)]
    Path("teacher.pth").unlink()
    assert told(found, again) == [] and f"the run took `{before}`" in again.missing("teacher.pth", WEIGHT)


def test_a_record_of_another_shape() -> None:
    assert taken_from([]) == {}
    assert taken_from([{"path": ["a", 0], "written": "x", "taken": "/x"}]) == {
        ("a", 0): Taken("x", Path("/x"))
    }
    for wrong in ({"a": 1}, [1], [{"path": 1, "written": "x", "taken": "/x"}], 3, [{"path": [[]]}]):
        with pytest.raises(ValueError):
            taken_from(wrong)


def test_every_path_of_a_spec(specs: Path) -> None:
    kwargs = "dataset.{}.dataset.kwargs"
    train, test = kwargs.format("train"), kwargs.format("test")
    found = parsed(
        specs,
        "saver.pretrain_model=p.pth",
        "saver.resume_model=r.pt",
        f"{train}.root=data",
        f"{train}.meta_file=[a.txt, b.txt]",
        f"{train}.image_reader.kwargs.image_dir=s3://bucket/images",
        f"{test}.evaluator.kwargs={{gt_file: truth.json}}",
    )
    assert dict(files_named(found.spec)) == {
        ("saver", "pretrain_model"): "p.pth",
        ("saver", "resume_model"): "r.pt",
        WEIGHT: "teacher.pth",
        ("dataset", "train", "dataset", "kwargs", "root"): "data",
        ("dataset", "train", "dataset", "kwargs", "meta_file", 0): "a.txt",
        ("dataset", "train", "dataset", "kwargs", "meta_file", 1): "b.txt",
        ("dataset", "test", "dataset", "kwargs", "evaluator", "kwargs", "gt_file"): "truth.json",
    }
    published = "mimic.teacher0.teacher_weight=torchvision:ResNet18_Weights.DEFAULT"
    assert WEIGHT not in dict(files_named(parsed(specs, published).spec))
    base = parsed(specs, "runtime.runner.type=base")
    assert WEIGHT not in dict(files_named(base.spec)), "`base` reads no teacher"
