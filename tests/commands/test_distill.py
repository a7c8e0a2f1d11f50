"""`kdcli distill` and `kdcli init --from`: what is read, chosen, written, trained and said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kdcli.commands.distill import distill, write_spec
from kdcli.commands.init import init
from kdcli.commands.options import DistillOptions, InitOptions
from kdcli.commands.validate import examine
from kdcli.errors import KdError, UsageError
from kdcli.models.network import build_network
from kdcli.models.weights import save_safetensors
from kdcli.spec.parse import read
from kdcli.spec.schema import ModuleSpec, Spec

TEACHER = "teacher.pth@cifar_resnet8"
STUDENT = "cifar_resnet8"
NAMES = ("dark", "light", "middle")


def network(kind: str = STUDENT, classes: int = 3, **kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    module = ModuleSpec(name="model", type=kind, kwargs={"num_classes": classes, **kwargs})
    return build_network([module], path=("net",))


def paint(folder: Path, count: int = 6, names: Sequence[str] = NAMES, size: int = 8) -> None:
    """Images whose brightness is their class."""
    draws = np.random.default_rng(0)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = draws.integers(0, 60, (size, size, 3)) + 85 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images of three classes and a random teacher of them, whose weights state pixels and classes."""
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "images")
    save(tmp_path / "teacher.pth")
    return tmp_path


def save(file: Path, classes: int = 3, names: Sequence[str] = NAMES, **kwargs: Any) -> None:
    facts = {"input_shape": [3, 8, 8], "mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3], "class_names": names}
    state = network(classes=classes, **kwargs).state_dict()
    save_safetensors(state, file, {key: json.dumps(value) for key, value in facts.items()})


def asked(**more: Any) -> InitOptions:
    given: dict[str, Any] = {"teacher": TEACHER, "student": STUDENT, "data": Path("images")}
    return InitOptions(recipe=True, **{**given, **more})


def made(**more: Any) -> Spec:
    """The spec that is written, which has no error, its files looked at."""
    request = write_spec(asked(**more))
    findings, _ = examine(str(request.spec), files="full", plugins=request.plugins)
    assert [found for found in findings if found.severity == "error"] == []
    return read(request.spec).spec


def refused(**more: Any) -> str:
    """The one message, its code first."""
    with pytest.raises(KdError) as caught:
        write_spec(asked(**more))
    (found,) = caught.value.diagnostics
    return f"{found.code}: {found.message}; {found.help}"


def test_the_spec_says_what_folder_and_weights_say(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(asked())
    spec = read("distilled_images/distill.yaml").spec
    assert spec.teachers["teacher0"][0].kwargs == {"num_classes": 3}
    assert spec.saver.save_dir == "distilled_images/run" and spec.mimic is not None
    kwargs = spec.dataset.train.dataset.kwargs
    assert kwargs.model_extra == {"root": "images", "split": "train"}
    assert kwargs.transformer[0].kwargs == {"size": 8}
    assert kwargs.transformer[-1].kwargs == {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]}
    assert spec.trainer.max_epoch == 40  # few_images
    out, err = capsys.readouterr()
    assert out.startswith("distilled_images/distill.yaml\nnext: kdcli validate")
    assert "> few_images" in err and "taken: few_images" in err
    assert "images: 3 class folders, 15 training images, shorter side 8 px" in err


@pytest.mark.slow
def test_it_is_right(place: Path) -> None:
    assert made().dataset.test.dataset.kwargs.model_extra == {"root": "images", "split": "test"}


@pytest.mark.slow
def test_sides_of_their_own_are_taken(place: Path) -> None:
    for side in ("train", "val", "test"):
        paint(place / "data" / side, count=2)
    spec = made(data=Path("data"))
    assert spec.dataset.test.dataset.kwargs.model_extra == {"root": "data/val"}


@pytest.mark.slow
def test_a_teacher_of_more_classes_is_matched_by_name(place: Path) -> None:
    save(place / "teacher.pth", 4, ("black", "middle", "light", "dark"))
    spec = made()
    assert spec.mimic is not None and spec.teachers["teacher0"][0].kwargs == {"num_classes": 4}
    (job,) = spec.mimic.jobs.values()
    assert job.teachers["teacher0"].classes == {name: name for name in NAMES}


@pytest.mark.slow
def test_a_teacher_of_classes_in_another_order_is_matched_by_kdcli(place: Path) -> None:
    save(place / "teacher.pth", names=NAMES[::-1])
    spec = made()
    assert (
        spec.mimic is not None and next(iter(spec.mimic.jobs.values())).teachers["teacher0"].classes is None
    )


def test_a_teacher_of_other_classes_is_refused(place: Path) -> None:
    save(place / "teacher.pth", names=("cat", "dog", "owl"))
    said = refused()
    assert said.startswith(
        "KD865: the teacher `teacher.pth@cifar_resnet8` knows no class `dark`, `light`, `middle`"
    )
    assert "kdcli init --from --student teacher.pth@cifar_resnet8 --data images" in said
    torch.save(network(classes=7).state_dict(), place / "seven.pth")
    assert "tells 7 classes apart, and `images` has 3 class folders" in refused(
        teacher="seven.pth@cifar_resnet8"
    )


@pytest.mark.slow
def test_without_labels_the_classes_are_the_teachers(place: Path) -> None:
    save(place / "teacher.pth", names=("cat", "dog", "owl"))
    spec = made(labels=False)
    assert spec.dataset.train.dataset.kwargs.model_extra == {
        "root": "images",
        "split": "train",
        "labels": "none",
    }


@pytest.mark.slow
def test_normalisation_is_measured_where_nothing_states_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher trained on pixels from 0 to 1 is right on these, and on no others."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    files = sorted((place / "images").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(one))).permute(2, 0, 1) for one in files])
    labels = torch.tensor([NAMES.index(one.parent.name) for one in files])
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net({"image": pixels / 255})["logits"], labels).backward()
        optimizer.step()
    torch.save({key.removeprefix("model."): value for key, value in net.state_dict().items()}, "plain.pth")
    spec = made(teacher="plain.pth@cifar_resnet8")
    normalize = spec.dataset.train.dataset.kwargs.transformer[-1].kwargs
    assert normalize == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert "pixels from 0 to 1 100.0 %; taken: pixels from 0 to 1" in capsys.readouterr().err


def test_images_that_need_a_word_are_not_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Transparent ones can't be read without `background`, which a change on the command line may bring."""
    for file in (place / "images").rglob("*.png"):
        Image.new("RGBA", (8, 8), (9, 9, 9, 100)).save(file)
    torch.save(network().state_dict(), "plain.pth")
    write_spec(asked(teacher="plain.pth@cifar_resnet8"))
    assert "no image can be read" in capsys.readouterr().err


def test_a_teacher_that_only_guesses_is_refused(place: Path) -> None:
    state = network().state_dict()
    for key in ("model.fc.weight", "model.fc.bias"):
        state[key] = torch.zeros_like(state[key])
    torch.save(state, "blank.pth")
    assert refused(teacher="blank.pth@cifar_resnet8").startswith(
        "KD865: the teacher `blank.pth@cifar_resnet8` names no more of 15 training images rightly than chance does"
    )


def test_without_weights_it_says_how_to_make_a_teacher(place: Path) -> None:
    said = refused(teacher="torchvision.resnet18")
    assert said.startswith("KD864: the teacher `torchvision.resnet18` has no weights")
    assert "`kdcli init --from --student torchvision:DEFAULT@torchvision.resnet18 --data images`" in said
    with pytest.raises(KdError, match="KD864: there is no teacher: `--teacher` is missing"):
        distill(DistillOptions(student=STUDENT, data=Path("images")))


@pytest.mark.slow
def test_without_a_teacher_published_weights_are_fine_tuned(place: Path) -> None:
    write_spec(asked(teacher=None, student="torchvision:DEFAULT@torchvision.resnet18"))
    spec = read("teacher_images/teacher.yaml").spec
    assert not spec.distils and spec.net[0].kwargs == {"num_classes": 3}
    assert spec.saver.pretrain_model == "torchvision:DEFAULT" and spec.saver.save_dir == "teacher_images/run"
    assert "`--student cifar_resnet8` has no weights to fine-tune" in refused(teacher=None, out=Path("other"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"teacher": "teacher.pth"}, "say `teacher.pth@NETWORK`"),
        ({"teacher": "teacher.pth@resnet18"}, "`teacher.pth@torchvision.resnet18`"),
        ({"student": "resnet18"}, "say `torchvision.resnet18`"),
        ({"student": "torchvision.shuflenet_v2_x0_5"}, "did you mean `shufflenet_v2_x0_5`"),
        ({"student": "cifar_resnt8"}, "did you mean `cifar_resnet8`"),
        ({"student": "nets:Mine"}, "allow it: `--plugin nets`"),
        ({"student": TEACHER}, "the student `teacher.pth@cifar_resnet8` is the teacher itself"),
        ({"teacher": "none.pth@cifar_resnet8"}, "KD530: no weights file `none.pth`"),
        ({"teacher": "teacher.pth@torchvision.resnet18"}, "KD531: the weights `teacher.pth` do not fit"),
        ({"data": Path("imagess")}, "there is no folder `imagess`"),
        ({"data": None}, "`--data` is missing"),
        ({"teacher": "teacher.pth@"}, "lacks one side of the `@`"),
    ],
)
def test_words_that_name_nothing(more: dict[str, Any], said: str, place: Path) -> None:
    found = refused(**more)
    assert said in found
    assert not Path("distilled_images").exists()


@pytest.mark.slow
def test_a_place_that_is_taken(place: Path) -> None:
    write_spec(asked())
    assert "distilled_images/distill.yaml is there already; start over with `--overwrite`" in refused()
    Path("distilled_images/run").mkdir()
    assert "go on with it: `kdcli train distilled_images/distill.yaml --resume`" in refused()
    write_spec(asked(overwrite=True))
    Path("full").mkdir()
    Path("full/mine").touch()
    assert "full is not empty" in refused(out=Path("full"), overwrite=True)


def test_options_that_do_not_go_together(place: Path) -> None:
    with pytest.raises(UsageError, match="`--data` is for `kdcli init --from`"):
        init(InitOptions(name="own_images", data=Path("images")))
    with pytest.raises(UsageError, match="`--from` chooses the sample itself"):
        init(asked(name="own_images"))


@pytest.mark.slow
def test_features_of_a_network_without_a_classifier(place: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), "vit.pth")
    spec = made(teacher="vit.pth@timm.test_vit", student="timm.test_resnet")
    assert spec.mimic is not None and spec.dataset.probe is not None
    (job,) = spec.mimic.jobs.values()
    assert job.teachers["teacher0"].mimic_name == ("norm:patches", "norm:class")
    assert job.student.mimic_name[1] == "pooled"
    assert spec.dataset.train.dataset.kwargs.transformer[0].kwargs["size"] == 160  # the size of its positions
    assert spec.dataset.probe.train.dataset.kwargs.model_extra == {"root": "images", "split": "train"}


def shell(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "kdcli.cli", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


LINE = ("--teacher", TEACHER, "--student", STUDENT, "--data", "images", "--device", "cpu")
SHORT = ("trainer.max_epoch=2", "trainer.test_freq=1", "trainer.lr_scheduler.kwargs.T_max=2")
WEAK = "mimic.teacher0.allow_weak_teacher=true"


@pytest.mark.slow
@pytest.mark.parametrize("labels", [(), ("--no-labels",)])
def test_one_line_to_a_student(labels: tuple[str, ...], place: Path) -> None:
    """Trained, measured and reported; `kdcli train` on the spec gives the same bits."""
    ran = shell("distill", *LINE, *labels, *SHORT, WEAK, folder=place)
    assert ran.returncode == 0, ran.stderr
    run = place / "distilled_images/run"
    assert (run / "report.html").exists() and "what there is now" in ran.stderr
    assert "kdcli export distilled_images/run" in ran.stderr and "teacher0" in ran.stdout
    again = shell(
        *("train", "distilled_images/distill.yaml", *SHORT, WEAK, "saver.save_dir=again", "--device", "cpu"),
        folder=place,
    )
    assert again.returncode == 0, again.stderr
    first, second = (load_file(one / "student.safetensors") for one in (run, place / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_an_interrupted_line_is_continued_by_train(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kdcli.cli", "distill", *LINE, "trainer.max_epoch=4000", WEAK],
        cwd=place,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        metrics = place / "distilled_images/run/metrics.jsonl"
        until = time.monotonic() + 200
        while time.monotonic() < until and not (metrics.exists() and '"step"' in metrics.read_text()):
            time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "kdcli train distilled_images/distill.yaml trainer.max_epoch=4000" in err and "--resume" in err
    assert WEAK in err  # what was changed on the command line is part of the command that goes on


def boxes(folder: Path) -> None:
    """Squares of two colours in COCO's format."""
    draws = np.random.default_rng(0)
    for side, count in (("train", 4), ("val", 2)):
        (folder / side).mkdir(parents=True)
        rows = []
        for number in range(count):
            pixels = draws.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            kind = number % 2
            pixels[10:40, 12:42, kind] = 220
            Image.fromarray(pixels).save(folder / side / f"{number}.png")
            box = {"bbox": [12, 10, 30, 30], "area": 900, "iscrowd": 0}
            rows.append({"id": number + 1, "image_id": number, "category_id": kind + 1, **box})
        listed = [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(count)]
        named = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
        content = {"images": listed, "annotations": rows, "categories": named}
        (folder / f"{side}.json").write_text(json.dumps(content))


def test_a_detector_without_weights_of_these_categories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    boxes(tmp_path / "data")
    known = "torchvision:DEFAULT@torchvision.fasterrcnn_resnet50_fpn"
    student = "torchvision.fasterrcnn_mobilenet_v3_large_fpn"
    said = refused(teacher=known, student=student, data=Path("data"))
    assert said.startswith(f"KD865: the teacher `{known}` tells 91 classes apart") and "2 categories" in said
    Path("own.yaml").write_text("net: {name: model, type: torchvision.fasterrcnn_resnet50_fpn}")
    assert "`kdcli train own.yaml`, and name its run: `--teacher runs/own`" in refused(teacher="own.yaml")
    said = refused(teacher=known, student=STUDENT, data=Path("data"))
    assert said.startswith("KD866: the student `cifar_resnet8` finds no boxes")


@pytest.mark.slow
def test_one_line_to_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the run of a detector to another spec's, whose neck maps are joined."""
    from kdcli.commands.samples import sample_specs

    monkeypatch.chdir(tmp_path)
    boxes(tmp_path / "data")
    for name in ("teacher", "student"):
        text = (
            sample_specs()[f"scenes_retina_{name}"].read_text().replace("num_classes: 11", "num_classes: 3")
        )
        text = text.replace("data/fashion-scenes/test", "data/val").replace("data/fashion-scenes/", "data/")
        Path(f"{name}.yaml").write_text(text)
    made = shell(
        "train", "teacher.yaml", "trainer.max_iter=1", "--no-report", "--device", "cpu", folder=tmp_path
    )
    assert made.returncode == 0, made.stderr
    line = ("--teacher", "runs/teacher", "--student", "student.yaml", "--data", "data", "--device", "cpu")
    ran = shell("distill", *line, "trainer.max_iter=2", WEAK, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    spec = read("distilled_data/distill.yaml").spec
    assert spec.mimic is not None
    (job,) = spec.mimic.jobs.values()
    assert job.student.mimic_name == ("neck.p3_conv", "neck.p4_conv", "neck.p5_conv")
    assert spec.dataset.train.dataset.kwargs.transformer[-1].kwargs["mean"] == [0.3, 0.3, 0.3]
    assert (tmp_path / "distilled_data/run/student.safetensors").exists() and "teacher" in ran.stdout
