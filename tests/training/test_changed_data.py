"""Data that changed between a stop and `--resume`: refused before a file is written, with what came and went."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdcli.errors import RunError
from kdcli.models.weights import read_weights
from kdcli.records import Notice, Record, Saved
from kdcli.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from kdcli.training.train import train
from tests.scenes import SAMPLES, on_scenes, write_scenes
from tests.training.conftest import Kdcli
from tests.training.processes import screen, start
from tests.training.runs import SPEC, run_of, spec_of, train_all

CLASSES = "abcd"
SIDES = {"train": 5, "test": 3}
"""Images of each class."""

FOLDERS = tuple(
    f"dataset.{side}.dataset={{type: image_folder, kwargs: {{root: data/{side}, color_mode: GRAY, "
    "transformer: [{type: to_tensor}]}}"
    for side in SIDES
)
LISTS = tuple(
    f"dataset.{side}.dataset={{type: cls, kwargs: {{meta_file: data/{side}.txt, num_classes: 4, image_reader: "
    f"{{type: fs_pillow, kwargs: {{image_dir: data/{side}, color_mode: GRAY}}}}, transformer: [{{type: to_tensor}}]}}}}"
    for side in SIDES
)
CRD = "mimic.cfgs={crd: {type: crd, kwargs: {feat_dim: 4, K: 6}}}"
FRESH = ("trainer.save_freq=1",)


def paint(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path, format="PPM")


@pytest.fixture(autouse=True)
def data(folder: Path) -> Path:
    """Four classes, five images to train and three to test on; `a/0.pgm` to `d/4.pgm`, and lists of them."""
    for side, many in SIDES.items():
        lines = []
        for label, name in enumerate(CLASSES):
            for i in range(many):
                paint(folder / "data" / side / name / f"{i}.pgm", 40 * label + 10 * i)
                lines.append(f"{name}/{i}.pgm {label}\n")
        (folder / "data" / f"{side}.txt").write_text("".join(lines))
    return folder / "data"


def begin(*changes: str) -> Path:
    """A run left after its first epoch; its newest checkpoint."""
    with run_of(spec_of(SPEC, *FRESH, *changes)) as run:
        for record in train(run):
            if isinstance(record, Saved):
                break
        return checkpoints(run.folder.checkpoints)[0]


def goes_on(*changes: str, allow: tuple[str, ...] = ()) -> list[Record]:
    return train_all(spec_of(SPEC, *FRESH, *changes), resume=True, allow_changed=allow)


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    """All that lies in a folder: when it was last written, and what it holds."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (root, *root.rglob("*"))
        if path.name != ".lock"  # says who holds the folder
    }


def refused(*changes: str, allow: tuple[str, ...] = ()) -> list[str]:
    """What is said, a text a finding; the run folder, and all that lies beside it, stays as it is."""
    (Path("runs/small/checkpoints") / "step_00000009.pt.7.tmp").write_bytes(b"half")
    before = contents(Path())
    with pytest.raises(RunError) as caught:
        goes_on(*changes, allow=allow)
    assert contents(Path()) == before
    return [f"{each.code} {each.message}; {each.help}" for each in caught.value.diagnostics]


def told(records: list[Record]) -> str:
    return "\n".join(r.message for r in records if isinstance(r, Notice))


TRAIN = "KD733 the training data is not what the checkpoint was trained on: "
TEST = "KD733 the test data is not what the checkpoint was measured on: "
HELP = "; put the data back, start over with `--overwrite`, or accept it with `--allow-changed data."


def add(data: Path) -> None:
    for i in (5, 6, 7, 8):
        paint(data / "train" / "b" / f"{i}.pgm", 9)


def remove(data: Path) -> None:
    (data / "train/c/2.pgm").unlink()


def rename(data: Path) -> None:
    (data / "train/d/3.pgm").rename(data / "train/d/3x.pgm")


def rename_class(data: Path) -> None:
    for side in SIDES:
        (data / side / "b").rename(data / side / "z")


def overwrite(data: Path) -> None:
    with (data / "train/a/1.pgm").open("ab") as file:
        file.write(b"\n#")


def repaint(data: Path) -> None:
    """Other pixels in as many bytes: sample 0 is always looked at."""
    size = (data / "train/a/0.pgm").stat().st_size
    paint(data / "train/a/0.pgm", 200)
    assert (data / "train/a/0.pgm").stat().st_size == size


@pytest.mark.parametrize(
    "change, said",
    [
        (add, [TRAIN + "4 images came (`b/5.pgm`, `b/6.pgm`, `b/7.pgm`, ...)" + HELP + "train`"]),
        (remove, [TRAIN + "1 image went (`c/2.pgm`)" + HELP + "train`"]),
        (rename, [TRAIN + "1 image came (`d/3x.pgm`), 1 image went (`d/3.pgm`)" + HELP + "train`"]),
        (
            rename_class,
            [
                TRAIN + "5 images came (`z/0.pgm`, `z/1.pgm`, `z/2.pgm`, ...), "
                "5 images went (`b/0.pgm`, `b/1.pgm`, `b/2.pgm`, ...), 10 images changed their label "
                "(`c/0.pgm` from 2 to 1, `c/1.pgm` from 2 to 1, `c/2.pgm` from 2 to 1, ...), "
                "of its classes `z` came and `b` went" + HELP + "train`",
                TEST + "3 images came (`z/0.pgm`, `z/1.pgm`, `z/2.pgm`), "
                "3 images went (`b/0.pgm`, `b/1.pgm`, `b/2.pgm`), 6 images changed their label "
                "(`c/0.pgm` from 2 to 1, `c/1.pgm` from 2 to 1, `c/2.pgm` from 2 to 1, ...), "
                "of its classes `z` came and `b` went" + HELP + "test`",
            ],
        ),
        (overwrite, [TRAIN + "1 image has another size (`a/1.pgm` from 75 to 77 bytes)" + HELP + "train`"]),
        (repaint, [TRAIN + "1 of the 8 images looked at has other pixels (`a/0.pgm`)" + HELP + "train`"]),
    ],
)
def test_changed_files_are_refused_and_can_be_accepted(
    data: Path, change: Callable[[Path], None], said: list[str]
) -> None:
    begin(*FOLDERS)
    change(data)
    assert refused(*FOLDERS) == said
    records = goes_on(*FOLDERS, allow=("data",))
    assert "not what the checkpoint" in told(records) and "it was accepted" in told(records)
    assert read_weights(Path("runs/small/student.safetensors"))


def test_a_line_of_a_list_that_changed_its_label_and_lines_in_another_order(data: Path) -> None:
    begin(*LISTS)
    lists = data / "train.txt"
    lines = lists.read_text().splitlines(keepends=True)
    lists.write_text("".join(lines).replace("b/3.pgm 1", "b/3.pgm 2"))
    assert refused(*LISTS) == [TRAIN + "1 image changed its label (`b/3.pgm` from 1 to 2)" + HELP + "train`"]
    lists.write_text("".join([lines[1], lines[0], *lines[2:]]))
    assert refused(*LISTS) == [TRAIN + "its samples come in another order" + HELP + "train`"]
    (data / "train/b/3.pgm").unlink()
    lists.write_text("".join(lines))
    assert refused(*LISTS) == [TRAIN + "1 image has another size (`b/3.pgm` is missing)" + HELP + "train`"]


def test_the_test_side_alone_is_refused_by_its_own_name(data: Path) -> None:
    begin(*FOLDERS)
    paint(data / "test/a/9.pgm", 1)
    said = [TEST + "1 image came (`a/9.pgm`)" + HELP + "test`"]
    assert refused(*FOLDERS) == said
    assert refused(*FOLDERS, allow=("data.train",)) == said
    records = goes_on(*FOLDERS, allow=("data.test",))
    assert "the next evaluation counts as the best so far" in told(records)


def test_untouched_data_goes_on_as_if_nothing_had_been_and_its_lists_are_written_once() -> None:
    train_all(spec_of(SPEC, *FRESH, *FOLDERS, "saver.save_dir=whole"))
    begin(*FOLDERS)
    lists = sorted(Path("runs/small").glob("data_*.tsv.gz"))
    assert [path.name.split("_")[1] for path in lists] == ["test", "train"]
    written = [path.stat().st_mtime_ns for path in lists]
    assert "data" not in told(goes_on(*FOLDERS))
    assert [path.stat().st_mtime_ns for path in sorted(Path("runs/small").glob("data_*.tsv.gz"))] == written
    one, other = (read_weights(Path(run) / "student.safetensors") for run in ("whole", "runs/small"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_accepted_data_is_the_data_from_there_on(data: Path) -> None:
    newest = begin(*FOLDERS)
    kept = newest.read_bytes()
    add(data)
    goes_on(*FOLDERS, allow=("data.train",))
    assert "data" not in told(goes_on(*FOLDERS))
    # The checkpoint of before is of the data of before, and its list is still there.
    shutil.rmtree(newest.parent)
    newest.parent.mkdir()
    newest.write_bytes(kept)
    assert "4 images came" in refused(*FOLDERS)[0]
    train_all(spec_of(SPEC, *FRESH, *FOLDERS), overwrite=True)
    assert len(list(Path("runs/small").glob("data_*.tsv.gz"))) == 2


def test_data_that_was_moved_is_the_same(data: Path) -> None:
    begin(*FOLDERS)
    data.rename("elsewhere")
    moved = [f"dataset.{side}.dataset.kwargs.root=elsewhere/{side}" for side in SIDES]
    keys = tuple(change.partition("=")[0] for change in moved)
    said = refused(*FOLDERS, *moved)
    assert len(said) == 1 and said[0].startswith("KD715") and all(key in said[0] for key in keys)
    notices = told(goes_on(*FOLDERS, *moved, allow=keys))
    assert " data is not what " not in notices
    assert (
        'changed from here on: `dataset.test.dataset.kwargs.root` is "elsewhere/test", it was "data/test"'
        in notices
    )


def test_moved_data_with_other_pixels_is_noticed(data: Path) -> None:
    begin(*FOLDERS)
    data.rename("elsewhere")
    repaint(Path("elsewhere"))
    moved = [f"dataset.{side}.dataset.kwargs.root=elsewhere/{side}" for side in SIDES]
    said = refused(*FOLDERS, *moved, allow=("dataset",))
    assert said == [TRAIN + "1 of the 8 images looked at has other pixels (`a/0.pgm`)" + HELP + "train`"]


def test_other_transforms_are_another_spec_and_no_other_data() -> None:
    begin(*FOLDERS)
    key = "dataset.train.dataset.kwargs.transformer"
    other = f"{key}=[{{type: to_tensor}}, {{type: normalize, kwargs: {{mean: [0.5], std: [0.5]}}}}]"
    assert [text[:5] for text in refused(*FOLDERS, other)] == ["KD715"]
    notices = told(goes_on(*FOLDERS, other, allow=(key,)))
    assert " data is not what " not in notices and f'`{key}.1.type` is "normalize", it was not set' in notices


def test_made_up_images_of_another_seed_are_another_spec_and_other_data() -> None:
    begin()
    seed = "dataset.train.dataset.kwargs.seed=5"
    said = refused(seed)
    assert [text[:5] for text in said] == ["KD715", "KD733"] and "dataset.train.dataset.kwargs.seed" in said[
        0
    ]
    assert said[1] == TRAIN + (
        "40 samples have other pixels (`sample 0`, `sample 1`, `sample 2`, ...)" + HELP + "train`"
    )
    goes_on(seed, allow=("dataset.train.dataset.kwargs.seed", "data.train"))


def test_a_list_that_is_gone_or_damaged_leaves_only_that_it_differs(data: Path) -> None:
    begin(*FOLDERS)
    add(data)
    (path,) = Path("runs/small").glob("data_train_*.tsv.gz")
    whole = path.read_bytes()
    for damage in (whole[:-9], b"", whole[:30] + bytes([whole[30] ^ 255]) + whole[31:], None):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert refused(*FOLDERS) == [
            TRAIN
            + f"its list of samples differs (the one before, {path}, is missing or damaged)"
            + HELP
            + "train`"
        ]


def test_a_checkpoint_of_before_goes_on_with_a_word() -> None:
    newest = begin(*FOLDERS)
    state = load_checkpoint(newest)
    assert set(state.pop("data")) == {"train", "test"}
    shutil.rmtree(newest.parent)
    newest.parent.mkdir()
    save_checkpoint(newest.parent, 3, state, keep=1)
    assert "whether that has changed since can't be told" in told(goes_on(*FOLDERS))


def test_a_loss_with_a_row_for_each_sample_is_told_of_the_data_first(data: Path) -> None:
    begin(*FOLDERS, CRD)
    remove(data)
    help = "; put the data back, or start over with `--overwrite`; to go on is no choice, since "
    said = [TRAIN.replace("KD733", "KD734") + "1 image went (`c/2.pgm`)" + help]
    said[0] += "mimic_job0 keeps a row for each of the 20 samples"
    assert refused(*FOLDERS, CRD) == said
    assert refused(*FOLDERS, CRD, allow=("data",)) == said
    paint(data / "train/c/2x.pgm", 5)
    assert "came (`c/2x.pgm`), 1 image went (`c/2.pgm`)" in refused(*FOLDERS, CRD)[0]
    goes_on(*FOLDERS, CRD, allow=("data",))


def test_a_teacher_cache_is_not_made_anew_by_a_run_that_is_refused(data: Path) -> None:
    """`refused` compares all that lies there; without the digest the cache alone would have noticed."""
    cached = "mimic.teacher0.cache={views: 1, dir: caches}"
    begin(*FOLDERS, cached)
    assert list(Path("caches").iterdir())
    repaint(data)
    assert "other pixels" in refused(*FOLDERS, cached)[0]
    assert "is cached anew" in told(goes_on(*FOLDERS, cached, allow=("data",)))


def test_a_named_checkpoint_and_auto_resume_are_asked_too(data: Path) -> None:
    newest = begin(*FOLDERS)
    other = begin(*FOLDERS, "saver.save_dir=named")
    add(data)
    assert "4 images came" in refused(*FOLDERS, "saver.auto_resume=true")[0]
    for changes, options in (
        ((), {"resume": newest}),
        ((f"saver.resume_model={other}",), {}),
        ((), {"resume": True, "restarted": True, "allow_changed": ("saver",)}),
    ):
        at = () if options.get("resume") is True else ("saver.save_dir=third",)
        with pytest.raises(RunError, match=r"KD733.*4 images came \(`b/5.pgm`"):
            train_all(spec_of(SPEC, *FRESH, *FOLDERS, *at, *changes), **options)
        assert not Path("third").exists()


@pytest.mark.slow
def test_eval_and_report_tell_test_data_that_changed_since_the_run(kdcli: Kdcli, data: Path) -> None:
    Path("small.yaml").write_text(spec_of(SPEC, *FOLDERS).resolved_yaml())
    assert kdcli("train", "small.yaml", "--no-report")[0] == 0
    said = "the test data is not what training measured: "
    for command in (["eval", "runs/small"], ["report", "runs/small"]):
        code, _, err = kdcli(*command)
        assert code == 0 and said not in err, err
    assert said not in Path("runs/small/report.html").read_text()
    paint(data / "test/a/7.pgm", 200)
    (data / "test/c/2.pgm").unlink()
    told = f"{said}1 image came (`a/7.pgm`), 1 image went (`c/2.pgm`)"
    for command in (["eval", "runs/small"], ["report", "runs/small"]):
        code, _, err = kdcli(*command)
        assert code == 0 and err.count(told) == 1, err
    assert f"{told}: curves and headline are of that data" in Path("runs/small/report.html").read_text()
    weights = str(Path("runs/small/student.safetensors"))
    code, _, err = kdcli("eval", "runs/small", "--weights", weights)
    assert code == 0 and said not in err, err  # what this file was measured on is not said


@pytest.mark.slow
def test_boxes_and_categories(folder: Path, kdcli: Kdcli) -> None:
    scenes = write_scenes(folder / "scenes", num_train=4, num_test=3)
    spec = str(SAMPLES / "scenes_student.yaml")
    changes = [*on_scenes(scenes), "saver.save_dir=out"]
    code, _, err = kdcli("train", spec, *changes, "--device", "cpu", "--no-report")
    assert code == 0, err
    text, tested = ((scenes / f"{side}.json").read_text() for side in SIDES)
    again = ("train", spec, *changes, "--device", "cpu", "--no-report", "--resume")
    before = contents(Path("out"))
    for other, said in (
        (narrower(text), "1 image has other boxes (`"),
        (renamed(text), "of its classes `1 new "),
    ):
        (scenes / "train.json").write_text(other)
        (scenes / "test.json").write_text(renamed(tested) if other == renamed(text) else tested)
        code, _, err = kdcli(*again)
        assert code == 1 and contents(Path("out")) == before
        assert "KD733" in err and said in err and f"{spec}:" in err, err
    (scenes / "train.json").write_text(json.dumps(json.loads(text), indent=1))
    (scenes / "test.json").write_text(tested)
    code, _, err = kdcli(*again)
    assert code == 0, err
    # The evaluator's file, whose `area` sorts boxes into small and large, and no image of the data.
    truth = scenes / "truth.json"
    other = json.loads((scenes / "test.json").read_text())
    truth.write_text(json.dumps(other, indent=1))
    at = f"dataset.test.dataset.kwargs.evaluator.kwargs.gt_file={truth}"
    key = at.partition("=")[0]
    code, _, err = kdcli(*again, at)
    assert code == 1 and "KD715" in err and key in err and "KD733" not in err, err
    other["annotations"][0]["area"] = 1.0
    truth.write_text(json.dumps(other))
    code, _, err = kdcli(*again, at, "--allow-changed", key)
    assert code == 1 and "the annotations that it is measured by are others" in err, err


def renamed(text: str) -> str:
    """The annotations with another name of the first category."""
    return text.replace('"id": 1, "name": "', '"id": 1, "name": "new ')


def narrower(text: str) -> str:
    """The annotations with the first box a pixel narrower."""
    found = json.loads(text)
    found["annotations"][0]["bbox"][2] -= 1
    return json.dumps(found)


@pytest.mark.slow
def test_two_processes_are_refused_together(folder: Path, data: Path) -> None:
    spec = folder / "small.yaml"
    spec.write_text(SPEC)
    changes = [*FRESH, *FOLDERS, "saver.save_dir=out"]
    assert set(start(spec, *changes, processes=2).codes()) == {0}
    remove(data)
    before = contents(folder / "out")
    assert set(start(spec, *changes, processes=2, resume="auto").codes()) == {1}
    assert contents(folder / "out") == before
    assert screen(folder).count("1 image went (`c/2.pgm`)") >= 1
