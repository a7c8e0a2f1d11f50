"""Cut-out photographs (stamps) and photographs to lay them on: where they lie, and the split that each is for.

A stamp, its mirror image and near copies of it are in one split alone; so are a background and its other sizes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdcli.data.classification.image_folder import images_below
from kdcli.data.draws import SPLIT, permutation
from kdcli.data.image_readers import FORMATS
from kdcli.disk import asking, entries, exists, is_file, is_folder, real_path, reason_of, size_of, text_in
from kdcli.errors import RunError, UsageError, did_you_mean, first_line

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

SHARES: dict[Split, float] = {"test": 0.3, "val": 0.2}
"""Of the stamps of a class and of the backgrounds; the others are for training, those of a split without images too."""

STAMPS = ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps")
"""Debian's package of stamps, and where it puts them."""

CLASSES = (
    *("animals/birds", "animals/mammals", "food/fruit", "food/vegetables"),
    *("household", "plants/flowers", "town/roadsigns", "vehicles"),
)
"""The folders of that package with the most photographs."""

DRAWN = "cartoon"
"""Folders of this name, which that package has in many places, hold drawings and are left out."""

BACKGROUNDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "opencv-doc": (
        "usr/share/doc/opencv-doc/examples",
        (
            *("alphamat/input_images/plant.jpg", "data/aero1.jpg", "data/aloeL.jpg", "data/board.jpg"),
            *("data/box_in_scene.png", "data/building.jpg", "data/ela_original.jpg", "data/graf1.png"),
            *("data/home.jpg", "data/left.jpg", "data/leuvenA.jpg", "data/rubberwhale1.png"),
            *(
                "data/smarties.png",
                "data/stuff.jpg",
                "data/sudoku.png",
                "hfs/data/001.jpg",
                "hfs/data/002.jpg",
            ),
            *(f"text/scenetext0{number}.jpg" for number in range(1, 7)),
        ),
    ),
    "mate-backgrounds": (
        "usr/share/backgrounds/mate/nature",
        (
            *("Aqua.jpg", "Blinds.jpg", "Dune.jpg", "GreenMeadow.jpg", "LadyBird.jpg", "RainDrops.jpg"),
            *("Storm.jpg", "TwoWings.jpg", "Wood.jpg"),
        ),
    ),
    "lomiri-wallpapers-16.04": (
        "usr/share/backgrounds",
        (
            *("Bridge_by_Sander_Klootwijk.jpg", "Dragonfly_by_Bolly.jpg", "Picture_1A_by_freespace.jpg"),
            *(
                "Wine_by_Jakkub_Mede.jpg",
                "aitzgorri_by_Aitzol_Berasategi.jpg",
                "life_by_Aitzol_Berasategi.jpg",
            ),
            *("analogpattern_by_Peter_Nerlich.jpg", "greentock_by_Peter_Nerlich.jpg"),
            *("picosdeeuropa_by_Aitzol_Berasategi.jpg", "sunset_by_Aitzol_Berasategi.jpg"),
        ),
    ),
}
"""By Debian's package, its folder and the photographs in it that show nothing of the eight classes."""

ALIKE = 5.0
"""Two pictures are copies whose 8x8 thumbnails differ by at most so much, of 255, on average."""

OPAQUE = 128
"""A pixel of a stamp belongs to its object from this alpha on."""

TRANSPARENT = ("RGBA", "LA", "PA")
"""Pillow's modes with alpha."""

SMALLEST_SIDE = 8
"""Pixels on the longer side of a stamp's object, below which it shows nothing."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What scenes are composed from. stamps: of each split, by class. left_out: files that are neither.

    others: stamps of no class, for images without labels, by the folder that they were found in.
    """

    classes: tuple[str, ...]
    stamps: Mapping[Split, tuple[tuple[Path, ...], ...]]
    backgrounds: Mapping[Split, tuple[Path, ...]]
    left_out: tuple[Path, ...]
    packages: tuple[str, ...]
    others: tuple[tuple[Path, ...], ...] = ()


def find_sources(
    seed: int,
    splits: Sequence[Split],
    *,
    root: Path,
    stamps: Path | None = None,
    backgrounds: Path | None = None,
    classes: Sequence[str] = (),
    others: Sequence[Path] = (),
) -> Sources:
    """Stamps and backgrounds of the splits that images are made for, by the seed.

    root: where Debian's packages lie, for what is not given as a folder of its own. classes: folders of stamps, or
    `name=folder`. others: folders of stamps of no class; a copy of a stamp of a class is none of them.
    Raises RunError KD506 (missing), KD511 (damaged), KD810 to KD812, UsageError for a class.
    """
    packages = _missing_packages_refused(root, stamps is None, backgrounds is None)
    by_class = _stamps_by_class(root / STAMPS[1] if stamps is None else stamps, classes)
    groups, marks, left_out = _groups_of_stamps(by_class)
    more, none = _other_stamps(others, marks)
    left_out += none
    if backgrounds is None:
        behind = _packaged_backgrounds(root)
    else:
        behind, transparent = _backgrounds_in(backgrounds)
        left_out += transparent
    return Sources(
        classes=tuple(by_class),
        stamps=_split_stamps(groups, tuple(by_class), seed, splits),
        backgrounds=_split_backgrounds(behind, seed, splits, backgrounds),
        # Folders may lie in each other: each file once.
        left_out=tuple({real_path(file): file for file in left_out}.values()),
        packages=packages,
        others=more,
    )


@lru_cache(maxsize=1024)
def stamp(path: Path, longest: int) -> Image.Image | None:
    """The object of a stamp, RGBA without the transparent rows and columns around it, its longer side at most so long.

    None where nothing of the image is transparent, or nothing of it is seen. Raises RunError KD511.
    """
    image = _opened(path)
    if image.mode not in TRANSPARENT and "transparency" not in image.info:
        return None
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    box = alpha.point(lambda value: 255 if value >= OPAQUE else 0).getbbox()
    if (
        box is None
        or np.asarray(alpha).min() >= OPAQUE
        or max(box[2] - box[0], box[3] - box[1]) < SMALLEST_SIDE
    ):
        return None
    image = image.crop(box)
    image.thumbnail((longest, longest), Image.Resampling.BOX, reducing_gap=None)
    return image


@lru_cache(maxsize=64)
def background(path: Path, shorter: int) -> Image.Image | None:
    """A photograph, RGB, its shorter side at most so long. Raises RunError KD511.

    None where it is transparent in places, or of more than 8 bits a channel.
    """
    image = _opened(path, (shorter, shorter))
    if image.mode.startswith(("I", "F")):
        return None
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            return None
    image = image.convert("RGB")
    factor = shorter / min(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def licences(root: Path, package: str) -> list[str]:
    """The names of licences in a Debian package's copyright file; none where it has no such file."""
    file = root / "usr/share/doc" / package / "copyright"
    if not is_file(file):
        return []
    found = re.findall(r"^License: *(\S.*?) *$", text_in(file, errors="replace"), re.MULTILINE)
    return sorted(dict.fromkeys(found))


def _missing_packages_refused(root: Path, stamps: bool, backgrounds: bool) -> tuple[str, ...]:
    """The packages that are needed, all of them there; RunError KD506 names the missing ones, with what gets them."""
    needed = [STAMPS[0]] if stamps else []
    missing = [STAMPS[0]] if stamps and not is_folder(root / STAMPS[1]) else []
    for package, (folder, names) in BACKGROUNDS.items() if backgrounds else ():
        needed.append(package)
        if not any(is_file(root / folder / name) for name in names):
            missing.append(package)
    if missing:
        listed = " ".join(missing)
        where = "" if root == Path("/") else f" below `{root}`"
        verb = "is" if len(missing) == 1 else "are"
        raise RunError.of(
            "KD506",
            f"{', '.join(missing)} {verb} not there{where}: packages of photographs that scenes are made of",
            f"`apt-get install {listed}`; or into a folder: `apt-get download {listed} && for file in *.deb;"
            " do dpkg -x $file photographs; done`, then `--root photographs`",
        )
    return tuple(needed)


def _opened(path: Path, draft: tuple[int, int] | None = None) -> Image.Image:
    """A decoded image; a JPEG of at least the draft's size is decoded no larger than needed for it."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            if draft is not None:
                image.draft("RGB", draft)
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(path, error) from error
    except Image.DecompressionBombWarning as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunError:
    if isinstance(error, UnidentifiedImageError):
        reason = "it is no image"
    else:
        reason = reason_of(error)[0] if isinstance(error, OSError) and error.errno else first_line(error)
    return RunError.of("KD511", f"`{path}` can't be read: {reason}", "take it out of the folder, or mend it")


def _needed_folder(folder: Path, what: str) -> None:
    if is_folder(folder):
        return
    reason = "is a file, not a folder" if exists(folder) else "is not there"
    raise RunError.of("KD506", f"`{folder}` {reason}", f"name the folder of {what}")


def _stamps_by_class(folder: Path, wanted: Sequence[str]) -> dict[str, list[Path]]:
    """The image files of each class; `wanted` by default CLASSES where they are there, else every folder in it."""
    _needed_folder(folder, "stamps: `--stamps`")
    if not wanted and all(is_folder(folder / name) for name in CLASSES):
        wanted = CLASSES
    there = [path.name for path in entries(folder) if is_folder(path) and not path.name.startswith(".")]
    wanted = wanted or [name for name in there if name != DRAWN]
    if not wanted:
        raise RunError.of("KD506", f"`{folder}` has no folders", "one for each class of stamps")
    found: dict[str, list[Path]] = {}
    places: dict[str, str] = {}
    for entry in wanted:
        name, named, place = entry.partition("=")
        place = (place if named else entry).strip("/")
        name = name if named else place.rpartition("/")[2]
        if not name or not place or ".." in Path(place).parts:
            raise UsageError.of(f"`--class {entry}` names no class", "write `--class fruit=food/fruit`")
        if not is_folder(folder / place):
            raise UsageError.of(f"there is no folder `{place}` in {folder}", did_you_mean(place, there))
        if name in found:
            raise UsageError.of(
                f"two classes are named `{name}`", f"give one another name: `--class other={place}`"
            )
        for other, elsewhere in places.items():
            if f"{place}/".startswith(f"{elsewhere}/") or f"{elsewhere}/".startswith(f"{place}/"):
                raise UsageError.of(
                    f"classes `{other}` and `{name}` share a folder", "classes lie side by side"
                )
        places[name] = place
        found[name] = _not_drawn(folder / place)
    return found


def _not_drawn(folder: Path) -> list[Path]:
    """Every image below a folder that is in no folder of drawings."""
    with asking(folder):
        files = [Path(file) for file in images_below(folder)[0]]
    return [file for file in files if DRAWN not in file.relative_to(folder).parts[:-1]]


def _groups_of_stamps(
    by_class: Mapping[str, list[Path]],
) -> tuple[list[list[tuple[int, Path]]], list[NDArray[np.float32]], list[Path]]:
    """Stamps as (class, file), grouped with their copies, the mark of each stamp, and the files that are none.

    Raises RunError KD810.
    """
    items: list[tuple[int, Path]] = []
    marks: list[NDArray[np.float32]] = []
    left_out: list[Path] = []
    for label, (name, files) in enumerate(by_class.items()):
        before = len(items)
        for file in files:
            image = stamp(file, 256)
            if image is None:
                left_out.append(file)
            else:
                items.append((label, file))
                marks.append(_mark(image.convert("RGBa")))
        if len(items) == before:
            what = f"none of the {len(files)} images of class `{name}` is" if files else f"class `{name}` has"
            raise RunError.of(
                "KD810",
                f"{what} {'a' if files else 'no'} cut-out photograph",
                "a stamp is an image with alpha: the object is opaque, the rest of the image transparent; `--class` "
                "says which folders are classes",
            )
    return [[items[place] for place in group] for group in _alike(marks)], marks, left_out


def _other_stamps(
    folders: Sequence[Path], of_classes: Sequence[NDArray[np.float32]]
) -> tuple[tuple[tuple[Path, ...], ...], list[Path]]:
    """One file of each stamp below each folder that is no copy of a class's, and the files that are no stamps
    or can't be read. of_classes: the marks of the classes' stamps. Raises RunError KD810 where a folder has none.
    """
    if not folders:
        return (), []
    marks = [*of_classes]
    items: list[tuple[int, Path]] = []
    left_out: list[Path] = []
    for number, folder in enumerate(folders):
        _needed_folder(folder, "cut-outs of no class: `--unlabelled-stamps`")
        for file in _not_drawn(folder):
            try:
                image = stamp(file, 256)
            except RunError:  # a large collection may have some that no one can open
                image = None
            if image is None:
                left_out.append(file)
                continue
            items.append((number, file))
            marks.append(_mark(image.convert("RGBa")))
    by_folder: list[list[Path]] = [[] for _ in folders]
    for first, *_ in _alike(marks):
        if first >= len(of_classes):
            number, file = items[first - len(of_classes)]
            by_folder[number].append(file)
    for folder, own in zip(folders, by_folder, strict=True):
        if not own:
            raise RunError.of(
                "KD810",
                f"`{folder}` has no cut-out that is no copy of another",
                "a stamp is an image with alpha: the object is opaque, the rest of the image transparent",
            )
    return tuple(tuple(own) for own in by_folder), left_out


def _mark(image: Image.Image) -> NDArray[np.float32]:
    """float32 [8, 8, channels]: what an image is compared with others by."""
    # Pillow resizes no RGBa, the bands alone: alpha is multiplied in already.
    bands = [band.resize((8, 8), Image.Resampling.BOX) for band in image.split()]
    return np.stack([np.asarray(band, dtype=np.float32) for band in bands], axis=-1)


def _alike(marks: Sequence[NDArray[np.float32]]) -> list[list[int]]:
    """Places of marks, grouped with those that are alike, mirrored or not, directly or by way of others."""
    if not marks:
        return []
    stacked = np.stack(marks)
    mirrored = stacked[:, :, ::-1].reshape(len(marks), -1)
    stacked = stacked.reshape(len(marks), -1)
    group = np.arange(len(marks))
    for place, mark in enumerate(stacked[1:], start=1):
        near = np.zeros(place, dtype=bool)
        for others in (stacked[:place], mirrored[:place]):
            near |= np.abs(others - mark).mean(1) <= ALIKE
        if near.any():
            joined = np.unique(group[:place][near])
            group[: place + 1][np.isin(group[: place + 1], joined)] = joined[0]
            group[place] = joined[0]
    return [[int(place) for place in np.flatnonzero(group == number)] for number in np.unique(group)]


def _packaged_backgrounds(root: Path) -> list[list[Path]]:
    places = [root / folder / name for folder, names in BACKGROUNDS.values() for name in names]
    return [[place] for place in places if is_file(place)]


def _backgrounds_in(folder: Path) -> tuple[list[list[Path]], list[Path]]:
    """Every image below a folder, grouped with its copies and other sizes, and those that are no backgrounds.

    Raises RunError KD812 where there is no image.
    """
    _needed_folder(folder, "photographs to lay stamps on: `--backgrounds`")
    with asking(folder):
        files = [Path(file) for file in images_below(folder)[0]]
    if not files:
        raise RunError.of("KD812", f"`{folder}` has no images", "photographs to lay stamps on, at any depth")
    images = {file: image for file in files if (image := background(file, 64)) is not None}
    found = list(images)
    groups = [
        [found[place] for place in group] for group in _alike([_mark(image) for image in images.values()])
    ]
    return _one_picture_a_wallpaper(groups), [file for file in files if file not in images]


def _one_picture_a_wallpaper(groups: Iterable[list[Path]]) -> list[list[Path]]:
    """Groups joined where files are named by their size alone (`contents/images/1920x1080.jpg`): one picture."""
    joined: dict[Path, list[Path]] = {}
    for group in groups:
        first = group[0]
        named = re.fullmatch(r"\d+x\d+", first.stem)
        folder = next((place for place in first.parents if place.name == "contents"), first.parent)
        joined.setdefault(folder if named or "contents" in first.parts else first, []).extend(group)
    return list(joined.values())


def _dealt(count: int, seed: int, number: int, splits: Sequence[Split]) -> list[Split] | None:
    """The split of each of so many things, in the order of their seed; None where they are too few.

    Test things are dealt first, so that they stay the same where no validation images are asked for. With these shares
    one is left for each split from as many things as splits.
    """
    if count < len(splits):
        return None
    dealt: list[Split] = ["train"] * count
    order = [int(place) for place in permutation(seed, number, count, stream=SPLIT)]
    for split, share in SHARES.items():
        if split in splits:
            taken = max(1, round(count * share))
            for place in order[:taken]:
                dealt[place] = split
            order = order[taken:]
    return dealt


def _split_stamps(
    groups: Sequence[list[tuple[int, Path]]], classes: Sequence[str], seed: int, splits: Sequence[Split]
) -> dict[Split, tuple[tuple[Path, ...], ...]]:
    """The stamps of each split, by class. RunError KD811 where a class has too few."""
    found: dict[Split, list[list[Path]]] = {split: [[] for _ in classes] for split in splits}
    for label, name in enumerate(classes):
        # A group that two classes share goes where the first of them has it.
        own = [group for group in groups if group[0][0] == label]
        dealt = _dealt(len(own), seed, label, splits)
        if dealt is None:
            raise _too_few("KD811", f"class `{name}` has {_counted(len(own), 'stamp')}", splits)
        for group, split in zip(own, dealt, strict=True):
            for which, file in group:
                found[split][which].append(file)
    return {split: tuple(tuple(sorted(files)) for files in by_class) for split, by_class in found.items()}


def _split_backgrounds(
    groups: Sequence[list[Path]], seed: int, splits: Sequence[Split], folder: Path | None
) -> dict[Split, tuple[Path, ...]]:
    """One file of each picture, the largest, by split. RunError KD812 where there are too few."""
    dealt = _dealt(len(groups), seed, -1, splits)
    if dealt is None:
        where = "" if folder is None else f" in `{folder}`"
        raise _too_few("KD812", f"there {_are(len(groups))}{where}", splits)
    largest = [max(group, key=lambda file: (size_of(file), str(file))) for group in groups]
    return {
        split: tuple(file for file, other in zip(largest, dealt, strict=True) if other == split)
        for split in splits
    }


def _are(count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {_counted(count, 'background')}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _too_few(code: str, what: str, splits: Sequence[Split]) -> RunError:
    help = "copies and mirror images count once; add some"
    if "val" in splits:
        help += ", or make no validation images: `--num-val 0`"
    return RunError.of(code, f"{what}, too few for {', '.join(splits)}, which share none", help)
