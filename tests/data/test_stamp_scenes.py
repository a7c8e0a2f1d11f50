"""Composed photographs: what is in no two splits, what the labels say of the pixels, and whole or nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kdcli.data import stamp_scenes, stamps
from kdcli.data.image_readers import FORMATS
from kdcli.data.stamp_scenes import MADE, MANIFEST, Part, Recipe, compose
from kdcli.data.stamps import BACKGROUNDS, CLASSES, SPLITS, STAMPS, Sources, find_sources
from tests.training.conftest import Kdcli, kdcli

__all__ = ["kdcli"]


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """Coarse coloured noise: no two seeds are alike."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def write_stamp(file: Path, image: Image.Image, *, mirrored: bool = False) -> None:
    """A disc of the image within transparent margins."""
    alpha = Image.new("L", image.size)
    ImageDraw.Draw(alpha).ellipse((6, 6, image.width - 7, image.height - 7), fill=255)
    image = image.copy()
    image.putalpha(alpha)
    file.parent.mkdir(parents=True, exist_ok=True)
    (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image).save(file)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stamps `a` and `b`, six each, and six backgrounds."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(12):
        write_stamp(folder / "stamps" / "ab"[number % 2] / f"{number}.png", noise(number, (60, 40)))
    (folder / "behind").mkdir()
    for number in range(6):
        noise(100 + number, (90, 70)).save(folder / "behind" / f"{number}.png")
    return folder


def options(own: Path, *others: str) -> tuple[str, ...]:
    counts = ("--num-train", "6", "--num-val", "4", "--num-test", "4", "--size", "48")
    return ("--stamps", str(own / "stamps"), "--backgrounds", str(own / "behind"), *counts, *others)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def solid(tmp_path: Path) -> Sources:
    """Training stamps are red on dark backgrounds, validation stamps green on grey, test stamps blue on bright."""
    stamps_of, backgrounds = {}, {}
    for place, split in enumerate(SPLITS):
        colour = tuple(200 if channel == place else 0 for channel in range(3))
        stamp, behind = tmp_path / f"{split}.png", tmp_path / f"{split}_behind.png"
        write_stamp(stamp, Image.new("RGB", (60, 40), colour))
        Image.new("RGB", (90, 70), (40 + 80 * place,) * 3).save(behind)
        stamps_of[split], backgrounds[split] = ((stamp,),), (behind,)
    return Sources(("disc",), stamps_of, backgrounds, (), ())


PARTS: list[tuple[Part, int]] = [("train", 0), ("val", 1), ("test", 2), ("unlabelled", 0)]


@pytest.mark.parametrize("part, place", PARTS)
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_an_image_shows_its_own_split_alone(
    part: Part, place: int, task: stamp_scenes.Task, tmp_path: Path
) -> None:
    recipe = Recipe(task=task, size=64, seed=3, counts={"train": 1, "val": 1, "test": 1}, unlabelled=1)
    sources = solid(tmp_path)
    for index in range(8):
        scene = compose(recipe, sources, part, index)
        pixels, instances = np.asarray(scene.image), np.asarray(scene.instances)
        assert len(scene.labels) >= 1 and set(np.unique(instances)) == {0, *range(1, len(scene.labels) + 1)}
        shown = pixels[instances > 0]
        # The rim is mixed with what is behind; inside, the stamp's one colour is as bright as LIGHT makes it.
        pure = shown[(np.delete(shown, place, axis=1) == 0).all(1)]
        assert len(pure) > len(shown) / 2 and pure[:, place].min() >= 200 * stamp_scenes.LIGHT[0] - 1
        behind = pixels[instances == 0]
        assert np.median(behind) == 40 + 80 * place


def test_no_stamp_and_no_background_is_in_two_splits(own: Path) -> None:
    for seed in range(3):
        found = find_sources(seed, SPLITS, root=Path("/"), stamps=own / "stamps", backgrounds=own / "behind")
        assert found.classes == ("a", "b")
        # Of six: two to test on, one to choose by, three to train on.
        for split, count in (("train", 3), ("val", 1), ("test", 2)):
            assert [len(files) for files in found.stamps[split]] == [count, count]
            assert len(found.backgrounds[split]) == count
        for one, other in combinations(SPLITS, 2):
            assert not set(found.backgrounds[one]) & set(found.backgrounds[other])
            for first, second in zip(found.stamps[one], found.stamps[other], strict=True):
                assert not set(first) & set(second)
    without = find_sources(
        0, ("train", "test"), root=Path("/"), stamps=own / "stamps", backgrounds=own / "behind"
    )
    withal = find_sources(0, SPLITS, root=Path("/"), stamps=own / "stamps", backgrounds=own / "behind")
    assert without.stamps["test"] == withal.stamps["test"]
    assert sum(len(files) for files in without.stamps["train"]) == 8


def test_copies_and_mirror_images_stay_together(tmp_path: Path) -> None:
    for number in range(4):
        image = noise(number, (60, 40))
        write_stamp(tmp_path / "a" / f"{number}.png", image)
        write_stamp(tmp_path / "a" / f"{number}_mirror.png", image, mirrored=True)
        with Image.open(tmp_path / "a" / f"{number}.png") as written:
            written.resize((120, 80), Image.Resampling.BICUBIC).save(tmp_path / "a" / f"{number}_large.png")
    behind = tmp_path / "behind"
    for number in range(4):
        (behind / str(number) / "contents/images").mkdir(parents=True)
        noise(50 + number, (90, 70)).save(behind / str(number) / "contents/images/90x70.png")
        noise(60 + number, (40, 70)).save(behind / str(number) / "contents/images/40x70.png")
        noise(50 + number, (45, 35)).save(behind / str(number) / "thumbnail.jpg", quality=95, subsampling=0)
    found = find_sources(1, SPLITS, root=Path("/"), stamps=tmp_path, backgrounds=behind, classes=["a"])
    for (files,) in found.stamps.values():
        numbers = [file.name[0] for file in files]
        assert numbers and all(numbers.count(number) == 3 for number in numbers)
    pictures = [file for files in found.backgrounds.values() for file in files]
    assert len(pictures) == 4 == len({file.relative_to(behind).parts[0] for file in pictures})


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_the_same_seed_gives_the_same_bytes(task: str, own: Path, kdcli: Kdcli) -> None:
    for folder, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        code, out, err = kdcli(
            "make-data", "stamp-scenes", folder, *options(own, "--task", task, "--seed", seed)
        )
        assert (
            code == 0 and f"{folder}/train  6 images\n{folder}/val  4 images\n{folder}/test  4 images" in out
        )
        assert err == "reading stamps and backgrounds\ncomposing 14 images\n"
    one, two, three = (contents(Path(folder)) for folder in ("one", "two", "three"))
    assert one == two and one.keys() == three.keys()
    images = [name for name in one if name.endswith(".jpg")]
    assert len(images) == 14 and all(one[name] != three[name] for name in images)
    assert len({one[name] for name in images}) == 14
    assert {name.split("/")[0] for name in one} <= set(MADE)
    with Image.open(Path("one") / images[0]) as image:
        assert image.size == (48, 48) and image.format in FORMATS


def test_boxes_are_what_the_masks_show(own: Path, kdcli: Kdcli) -> None:
    # The two tasks draw alike: the same seed gives the same images.
    for task in ("detection", "segmentation"):
        kdcli("make-data", "stamp-scenes", task, *options(own, "--task", task, "--num-train", "20"))
    told = json.loads(Path("detection/train.json").read_text())
    assert [category["name"] for category in told["categories"]] == ["a", "b"]
    checked = 0
    for image in told["images"]:
        file = Path("segmentation/train/images") / image["file_name"]
        assert file.read_bytes() == (Path("detection/train") / image["file_name"]).read_bytes()
        mask = np.asarray(Image.open(Path("segmentation/train/masks") / f"{file.stem}.png"))
        rows = [row for row in told["annotations"] if row["image_id"] == image["id"]]
        assert rows and set(np.unique(mask)) == {0, *(row["category_id"] for row in rows)}
        for number in (1, 2):
            of_class = [row for row in rows if row["category_id"] == number]
            assert sum(row["area"] for row in of_class) == (mask == number).sum()
            if len(of_class) == 1:
                ys, xs = np.nonzero(mask == number)
                x, y = int(xs.min()), int(ys.min())
                assert of_class[0]["bbox"] == [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y]
                checked += 1
    assert checked > 10


def test_classification_is_balanced_and_unlabelled_is_flat(own: Path, kdcli: Kdcli) -> None:
    assert kdcli("make-data", "stamp-scenes", "made", *options(own, "--unlabelled", "3"))[0] == 0
    folders = {str(path.relative_to("made")): len(list(path.iterdir())) for path in Path("made").glob("*/*/")}
    assert folders == {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2, "test/a": 2, "test/b": 2}
    assert sorted(path.name for path in Path("made/unlabelled").iterdir()) == [
        "00000.jpg",
        "00001.jpg",
        "00002.jpg",
    ]
    train = {path.read_bytes() for path in Path("made/train").rglob("*.jpg")}
    assert not train & {path.read_bytes() for path in Path("made/unlabelled").iterdir()}
    told = json.loads(Path("made", MANIFEST).read_text())
    assert told["counts"] == {"train": 6, "val": 4, "test": 4, "unlabelled": 3}
    assert told["classes"] == ["a", "b"] and told["seed"] == 0 and told["packages"] == {}
    files = [file for by_class in told["stamps"].values() for found in by_class.values() for file in found]
    assert sorted(files) == sorted(str(path) for path in (own / "stamps").rglob("*.png"))


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_every_second_image_without_labels_shows_things_of_no_class(
    task: stamp_scenes.Task, tmp_path: Path
) -> None:
    """From their folders by turns; images with labels are the same as without them."""
    recipe = Recipe(task=task, size=64, seed=3, counts={"train": 1}, unlabelled=8)
    alone = solid(tmp_path)
    others = (tmp_path / "green.png", tmp_path / "blue.png")
    for file, colour in zip(others, [(0, 200, 0), (0, 0, 200)], strict=True):
        write_stamp(file, Image.new("RGB", (60, 40), colour))
    sources = replace(alone, others=tuple((file,) for file in others))
    shown = []
    for index in range(8):
        scene = compose(recipe, sources, "unlabelled", index)
        pixels = np.asarray(scene.image)[np.asarray(scene.instances) > 0]
        shown.append("rgb"[int(pixels.astype(int).sum(0).argmax())])
        same = [np.asarray(compose(recipe, found, "train", index).image) for found in (alone, sources)]
        assert np.array_equal(*same)
    assert "".join(shown) == "rgrbrgrb"


def test_no_copy_of_a_class_is_among_the_things_of_no_class(own: Path, tmp_path: Path, kdcli: Kdcli) -> None:
    """Held-out stamps would be seen otherwise. Copies count once; drawings and what can't be read are left out."""
    folder = tmp_path / "others"
    for number in range(12):
        write_stamp(
            folder / "deep" / f"class_{number}.png", noise(number, (60, 40)), mirrored=number % 2 == 0
        )
    for name in ("one", "one_again", "two"):
        write_stamp(folder / f"{name}.png", noise(40 + len(name) % 2, (50, 50)))
    write_stamp(folder / "two.png", noise(50, (50, 50)))
    write_stamp(folder / "cartoon" / "drawn.png", noise(60, (50, 50)))
    noise(61, (50, 50)).save(folder / "opaque.png")
    (folder / "torn.png").write_bytes(b"none")
    more = ("--unlabelled", "4", "--unlabelled-stamps", str(folder))
    code, _, err = kdcli("make-data", "stamp-scenes", "made", *options(own, *more))
    assert code == 0 and "2 images are left out" in " ".join(err.split()), err
    told = json.loads(Path("made", MANIFEST).read_text())
    assert told["unlabelled_stamps"] == [str(folder / "one.png"), str(folder / "two.png")]
    assert told["left_out"] == [str(folder / "opaque.png"), str(folder / "torn.png")]
    assert len(list(Path("made/unlabelled").iterdir())) == 4
    write_stamp(folder / "inner" / "three.png", noise(70, (50, 50)))
    noise(71, (50, 50)).save(folder / "inner" / "opaque.png")
    more = ("--unlabelled", "4", "--unlabelled-stamps", str(folder / "inner"), *more[2:])
    code, _, err = kdcli("make-data", "stamp-scenes", "again", *options(own, *more))
    assert code == 0 and "3 images are left out" in " ".join(err.split()), err


def test_packages_are_taken_from_where_they_were_extracted(tmp_path: Path, kdcli: Kdcli) -> None:
    code, _, err = kdcli("make-data", "stamp-scenes", "made", "--root", str(tmp_path))
    assert code == 1 and "KD506" in err and all(name in err for name in (STAMPS[0], *BACKGROUNDS))
    assert "apt-get download" in err and "--root photographs" in err and not Path("made").exists()
    for place, name in enumerate(CLASSES):
        for number in range(2):
            write_stamp(tmp_path / STAMPS[1] / name / f"{number}.png", noise(10 * place + number, (30, 30)))
    write_stamp(tmp_path / STAMPS[1] / CLASSES[0] / "cartoon/2.png", noise(400, (30, 30)))
    write_stamp(tmp_path / STAMPS[1] / "symbols/1.png", noise(401, (30, 30)))
    code, _, err = kdcli("make-data", "stamp-scenes", "made", "--root", str(tmp_path))
    assert code == 1 and STAMPS[0] not in err and "opencv-doc" in err
    for place, (folder, names) in enumerate(BACKGROUNDS.values()):
        file = tmp_path / folder / names[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(200 + place, (90, 70)).convert("RGB").save(file)
    notes = tmp_path / "usr/share/doc/opencv-doc/copyright"
    notes.write_text("Files: *\nLicense: Apache-2.0\n\nFiles: x\nLicense: Expat\n")
    few = ("--num-train", "8", "--num-test", "8", "--size", "32")
    code, _, err = kdcli("make-data", "stamp-scenes", "made", "--root", str(tmp_path), *few)
    assert code == 0, err
    told = json.loads(Path("made", MANIFEST).read_text())
    assert told["classes"] == [name.rpartition("/")[2] for name in CLASSES]
    assert told["packages"]["opencv-doc"] == {"licences": ["Apache-2.0", "Expat"]}
    assert "cartoon" not in json.dumps(told) and "symbols" not in json.dumps(told)


def break_after(monkeypatch: pytest.MonkeyPatch, images: int, error: BaseException) -> None:
    """Let a write fail when so many images are written."""
    save: Callable[..., None] = Image.Image.save
    written = []

    def fails(self: Image.Image, path: Path, **settings: object) -> None:
        written.append(path)
        if len(written) > images:
            raise error
        save(self, path, **settings)

    monkeypatch.setattr(Image.Image, "save", fails)


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "other scenes"])
@pytest.mark.parametrize(
    "error, code, message",
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "No space left"), (KeyboardInterrupt(), 130, "")],
)
def test_what_is_interrupted_leaves_nothing(
    error: BaseException,
    code: int,
    message: str,
    before: str,
    own: Path,
    kdcli: Kdcli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if before == "an empty folder":
        Path("made").mkdir()
    elif before == "other scenes":
        kdcli("make-data", "stamp-scenes", "made", *options(own, "--seed", "5"))
        Path("made/mine.txt").write_text("mine")
    stood = contents(Path("made"))
    with monkeypatch.context() as patch:
        break_after(patch, 5, error)
        found, _, err = kdcli("make-data", "stamp-scenes", "made", *options(own, "--force"))
        assert (found, message in err) == (code, True)
    # What is in the way of --force is kdcli's own alone.
    assert contents(Path("made")) == stood and not list(Path().rglob("*.tmp*"))
    assert Path("made").exists() == (before != "nothing")
    if before == "other scenes":
        assert kdcli("make-data", "stamp-scenes", "made", *options(own))[0] == 2
        assert (
            kdcli("make-data", "stamp-scenes", "made", *options(own, "--task", "detection", "--force"))[0]
            == 0
        )
        assert Path("made/mine.txt").exists() and not Path("made/train/a").exists()
        return
    assert kdcli("make-data", "stamp-scenes", "made", *options(own))[0] == 0


def test_a_folder_of_the_users_is_left_alone(own: Path, kdcli: Kdcli) -> None:
    Path("made").mkdir()
    Path("made/mine.txt").write_text("mine")
    for force in ((), ("--force",)):
        code, _, err = kdcli("make-data", "stamp-scenes", "made", *options(own, *force))
        assert code == 2 and "made is not empty" in err
    code, _, err = kdcli("make-data", "stamp-scenes", "made/mine.txt", *options(own))
    assert code == 2 and "made/mine.txt is a file" in err
    assert contents(Path("made")) == {"mine.txt": b"mine"}


WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no folder": (("--stamps", "nowhere"), 1, "`nowhere` is not there"),
    "a file": (("--stamps", "file.txt"), 1, "`file.txt` is a file, not a folder"),
    "no class folders": (("--stamps", "empty"), 1, "`empty` has no folders"),
    "no images": (("--stamps", "hollow"), 1, "class `void` has no cut-out photograph"),
    "no alpha": (("--stamps", "opaque"), 1, "none of the 2 images of class `flat` is a cut-out photograph"),
    "too few stamps": (("--stamps", "pair"), 1, "class `two` has 2 stamps, too few for train, val, test"),
    "damaged stamp": (("--stamps", "torn"), 1, "`torn/half/1.png` can't be read"),
    "no background": (("--backgrounds", "empty"), 1, "`empty` has no images"),
    "too few backgrounds": (("--backgrounds", "one"), 1, "there is 1 background in `one`, too few for train"),
    "a class that is not there": (("--class", "A"), 2, "there is no folder `A`"),
    "a class twice": (("--class", "a", "--class", "a=b"), 2, "two classes are named `a`"),
    "a class in another": (("--class", "a", "--class", "x=a"), 2, "classes `a` and `x` share a folder"),
    "a class outside": (("--class", "../behind"), 2, "`--class ../behind` names no class"),
    "no extracted packages": (("--root", "nowhere"), 2, "there is no folder nowhere"),
    "no cut-outs of no class": (
        ("--unlabelled", "1", "--unlabelled-stamps", "opaque"),
        1,
        "`opaque` has no cut-out that is no copy of another",
    ),
    "none but copies": (
        ("--unlabelled", "1", "--unlabelled-stamps", "copies"),
        1,
        "`copies` has no cut-out that is no copy of another",
    ),
    "cut-outs for no image": (
        ("--unlabelled-stamps", "opaque"),
        2,
        "`--unlabelled-stamps` without `--unlabelled` makes no image",
    ),
    "no folder of cut-outs": (
        ("--unlabelled", "1", "--unlabelled-stamps", "nowhere"),
        1,
        "`nowhere` is not there",
    ),
    "size 0": (("--size", "0"), 2, "Invalid value for '--size'"),
    "a negative count": (("--num-train", "-1"), 2, "Invalid value for '--num-train'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case: str, own: Path, kdcli: Kdcli, tmp_path: Path) -> None:
    words, code, message = WRONG[case]
    Path("file.txt").touch()
    for name in ("empty", "hollow/void", "opaque/flat", "one", "torn/half"):
        Path(name).mkdir(parents=True)
    for number in range(2):
        noise(number, (30, 30)).save(f"opaque/flat/{number}.png")
        write_stamp(Path(f"pair/two/{number}.png"), noise(number, (30, 30)))
    noise(1, (30, 30)).save("one/1.png")
    write_stamp(Path("copies/1.png"), noise(1, (60, 40)))
    whole = (own / "stamps/a/0.png").read_bytes()
    Path("torn/half/1.png").write_bytes(whole[: len(whole) // 2])
    found, _, err = kdcli("make-data", "stamp-scenes", "made", *options(own, *words))
    assert found == code and message in " ".join(err.replace("│", " ").split()), err
    assert not Path("made").exists() and not list(tmp_path.glob("*.tmp"))


def test_options_belong_to_their_kind(kdcli: Kdcli) -> None:
    for words in (("--size", "64"), ("--class", "a"), ("--num-val", "3"), ("--unlabelled-stamps", "a")):
        code, _, err = kdcli("make-data", "fashion-scenes", "made", *words)
        assert code == 2 and f"`{words[0]}` is an option of stamp-scenes" in err


def test_what_is_no_background_is_left_out(own: Path, tmp_path: Path, kdcli: Kdcli) -> None:
    for number in range(6):
        noise(100 + number, (90, 70)).save(tmp_path / f"{number}.png")
    write_stamp(tmp_path / "cut.png", noise(7, (60, 60)))
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "deep.png")
    code, _, err = kdcli("make-data", "stamp-scenes", "made", *options(own, "--backgrounds", str(tmp_path)))
    assert code == 0 and "2 images are left out" in err
    assert sorted(json.loads(Path("made", MANIFEST).read_text())["left_out"]) == [
        str(tmp_path / "cut.png"),
        str(tmp_path / "deep.png"),
    ]


@pytest.mark.slow
def test_the_packages_give_eight_classes(kdcli: Kdcli) -> None:
    root = Path(os.environ.get("KDCLI_PHOTOGRAPHS", "/"))
    places = {STAMPS[0]: STAMPS[1], **{name: folder for name, (folder, _) in BACKGROUNDS.items()}}
    if absent := [name for name, folder in places.items() if not (root / folder).is_dir()]:
        pytest.skip(
            f"{', '.join(absent)} not there: KDCLI_PHOTOGRAPHS names the folder they were extracted into"
        )
    few = ("--num-train", "160", "--num-val", "40", "--num-test", "80")
    code, _, err = kdcli("make-data", "stamp-scenes", "made", "--root", str(root), *few)
    assert code == 0, err
    told = json.loads(Path("made", MANIFEST).read_text())
    assert (
        all(len(told["stamps"]["test"][name]) >= 5 for name in told["classes"]) and len(told["classes"]) == 8
    )
    assert stamps.licences(root, STAMPS[0]) == told["packages"][STAMPS[0]]["licences"] != []
