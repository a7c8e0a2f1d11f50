"""Readers of image files: from a name in a list to pixels, nothing outside the image folder.

Only plain raster formats are decoded (Pillow would start other programs for some), at most
`PIXEL_LIMIT` pixels, and names can't lead out of `image_dir`. What numbers of more than 8 bits and
transparent pixels become is kdcli.data.pixel_values' rule, whichever library decodes.
"""

from __future__ import annotations

import os.path
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdcli.data.jpeg import is_plain, reduce, torchvision_pixels
from kdcli.data.pixel_values import (
    NO_RULE,
    Background,
    PixelRule,
    Refused,
    ValueRange,
    as_bytes,
    colours_of_16_bits,
    depth_of,
    has_alpha,
    pixel_rule,
    range_of,
)
from kdcli.data.sources import BadSample
from kdcli.disk import is_folder, size_of
from kdcli.errors import Diagnostic, SpecError, SpecPath
from kdcli.spec.places import Places

ColorMode = Literal["RGB", "BGR", "GRAY"]
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
PIXEL_LIMIT = 89_478_485
"""Pillow's own limit: a quarter of a gigabyte of RGB."""
MISSING = "it does not exist"
"""Why an image can't be read whose file is not there."""
LYING = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


class PillowReader:
    """Pixels by Pillow, EXIF orientation ignored, as torchvision does.

    image_dir: one folder, or one for each meta file. value_range: [low, high], the numbers that become black
    and white in images of more than 8 bits a channel (modes F, I, I;16, colours of 16 bits), mapped linearly,
    rounded and clipped; images of 8 bits are read as they are. background: white, black, a number or
    [r, g, b], what transparent pixels lie on. Without them such an image is refused. scaled_decode: JPEGs are decoded
    at 1/2, 1/4 or 1/8 of their size where the first transform makes them smaller still; pixels are others then.
    `source` and `memcached` are accepted for United-Perception's sake: files are always read from disk.
    """

    rotates = False

    def __init__(
        self,
        path: SpecPath,
        places: Places,
        *,
        image_dir: str | list[str],
        color_mode: ColorMode = "RGB",
        value_range: ValueRange | None = None,
        background: Background | None = None,
        scaled_decode: bool = False,
        source: str | None = None,
        memcached: bool | None = None,
    ) -> None:
        self.scaled_decode = scaled_decode
        self.folders = [image_dir] if isinstance(image_dir, str) else list(image_dir)
        for folder in self.folders:
            if "://" in folder:
                raise SpecError.at(
                    (*path, "kwargs", "image_dir"),
                    "KD519",
                    f"`{folder}` is an object store, and images are read from disk only",
                    "copy the images and set `image_dir` to their folder",
                )
        if color_mode not in ("RGB", "BGR", "GRAY"):
            raise ValueError(f"`color_mode` must be RGB, BGR or GRAY, got {color_mode}")
        self.roots: list[str] = []
        self.missing: list[Diagnostic] = []
        for number, folder in enumerate(self.folders):
            where: SpecPath = (*path, "kwargs", "image_dir")
            where = where if isinstance(image_dir, str) else (*where, number)
            self.roots.append(str(places.find(folder, where)))
            if not is_folder(self.roots[-1]):
                message = f"there is no folder `{folder}`"
                help = f"`image_dir` is the folder of the images; {places.missing(folder, where)}"
                self.missing.append(Diagnostic(code="KD518", message=message, help=help, path=where))
        self.color_mode = color_mode
        own = path[-1:] == ("image_reader",)
        self.rule = pixel_rule(
            value_range, background, f"the {'image reader' if own else 'data set'}'s kwargs"
        )
        self.notices: tuple[str, ...] = (
            ("`memcached` is ignored: images are read from disk",) if memcached else ()
        )

    def locate(self, filename: str, number: int = 0) -> str | None:
        """The file's path, or None where the name leads out of its folder.

        number: which meta file the name comes from.
        """
        root = self.roots[number if len(self.roots) > 1 else 0]
        if "\0" in filename:
            return None
        joined = os.path.join(root, filename)
        if ".." in filename or os.path.isabs(filename):
            outside = os.path.relpath(os.path.abspath(joined), os.path.abspath(root)).split(os.sep)[0] == ".."
            if outside:
                return None
        return joined

    def read(self, file: str) -> Tensor:
        """uint8 [C, H, W], C 3 or 1; raises BadSample."""
        pixels = self._decode(file)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        # Channels stay last in memory, where resampling is fastest.
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def read_reduced(
        self, file: str, reduction: Callable[[int, int], int]
    ) -> tuple[Tensor, tuple[int, int], int]:
        """What `read` gives, the whole image's height and width, and by how much the pixels were reduced.

        reduction: by how much an image of a height and width may be, 1, 2, 4 or 8. Only JPEGs are.
        """
        with opened(file) as image:
            whole = self.size_of(image)
            by = reduction(*whole) if is_plain(image) else 1
        if by == 1:
            return self.read(file), whole, 1
        pixels = decoded(file, self.color_mode, rotate=self.rotates, rule=self.rule, reduction=by)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        return torch.from_numpy(pixels).permute(2, 0, 1), whole, by

    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """Height and width of what `read` would give of an opened image."""
        turned = self.rotates and orientation(image) in LYING
        return (image.width, image.height) if turned else (image.height, image.width)

    def _decode(self, file: str) -> NDArray[np.uint8]:
        return decoded(file, self.color_mode, rotate=self.rotates, rule=self.rule)


class OpencvReader(PillowReader):
    """Pixels as OpenCV gives them, turned by their EXIF orientation.

    Without OpenCV installed Pillow decodes, from the same JPEG library; so it does with images of more than
    8 bits a channel or with alpha, of which OpenCV would drop the low bits and the alpha without a word.
    """

    rotates = True

    def __init__(
        self,
        path: SpecPath,
        places: Places,
        *,
        image_dir: str | list[str],
        color_mode: ColorMode = "RGB",
        value_range: ValueRange | None = None,
        background: Background | None = None,
        source: str | None = None,
        memcached: bool | None = None,
        to_float32: bool = False,
    ) -> None:
        super().__init__(
            path,
            places,
            image_dir=image_dir,
            color_mode=color_mode,
            value_range=value_range,
            background=background,
            source=source,
            memcached=memcached,
        )
        self.has_opencv = find_spec("cv2") is not None
        if not self.has_opencv:
            self.notices += ("OpenCV is missing, Pillow decodes the images (pip install 'kdcli[opencv]')",)

    def _decode(self, file: str) -> NDArray[np.uint8]:
        if not self.has_opencv:
            return super()._decode(file)
        import cv2

        with opened(file) as image:
            by_rule = depth_of(image) is not None or has_alpha(image)
        if by_rule:
            return super()._decode(file)
        flag = cv2.IMREAD_GRAYSCALE if self.color_mode == "GRAY" else cv2.IMREAD_COLOR
        pixels: Any = cv2.imdecode(np.fromfile(file, dtype=np.uint8), flag)
        if pixels is None:
            raise BadSample(file, "OpenCV can't decode it")
        return np.ascontiguousarray(pixels[:, :, ::-1]) if self.color_mode == "RGB" else pixels


def opened(file: str) -> ImageFile.ImageFile:
    """The image with only its header read; raises BadSample for what is missing, foreign or too large."""
    if not os.path.isfile(file):
        raise BadSample(file, _no_file(file))
    with warnings.catch_warnings():
        # Pillow warns between its limit and twice that; here the limit is the limit.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as reason:
            raise BadSample(file, f"it declares more than {2 * PIXEL_LIMIT:,} pixels") from reason
        except UnidentifiedImageError as reason:
            said = f"it is none of {', '.join(FORMATS)}" if size_of(file) else "it is empty"
            raise BadSample(file, said) from reason
        except OSError as reason:
            raise BadSample(file, _system_error(reason)) from reason
        except Exception as reason:  # a hostile file can make a decoder raise anything
            raise BadSample(file, str(reason) or type(reason).__name__) from reason
    if image.width * image.height > PIXEL_LIMIT:
        image.close()
        raise BadSample(file, f"it declares {image.width}x{image.height} pixels, more than {PIXEL_LIMIT:,}")
    return image


def _no_file(file: str) -> str:
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError as reason:
        return _system_error(reason)
    return "it is a folder, no regular file" if os.path.isdir(file) else "it is no regular file"


def _system_error(reason: OSError) -> str:
    if isinstance(reason, PermissionError):
        return "you have no permission to read it"
    return reason.strerror or str(reason) or type(reason).__name__


def orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8; None where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # a hostile file can make a decoder raise anything
            return None
    return found if isinstance(found, int) else None


def decoded(
    file: str, color_mode: str, *, rotate: bool = False, rule: PixelRule = NO_RULE, reduction: int = 1
) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] or, for GRAY, [H, W]; raises BadSample. reduction: of a JPEG, 1/n of its size."""
    with opened(file) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Gray of a colour image is Pillow's own mixture, and turned images are few.
        by_torchvision = reduction == 1 and color_mode != "GRAY" and is_plain(image)
        if by_torchvision and not (rotate and orientation(image) not in (None, 1)):
            pixels = torchvision_pixels(file)
            if pixels is not None:
                return np.ascontiguousarray(pixels[:, :, ::-1]) if color_mode == "BGR" else pixels
        try:
            reduce(image, reduction)
            plain = as_bytes(image, rule, _colours_of_16_bits(file, image))
            if rotate:
                if plain is not image:
                    plain.getexif()[ExifTags.Base.Orientation] = orientation(image) or 1
                ImageOps.exif_transpose(plain, in_place=True)
            return _converted(plain, color_mode)
        except Refused as reason:
            raise BadSample(file, str(reason)) from reason
        except Exception as reason:  # as above
            raise BadSample(file, f"it is damaged ({reason or type(reason).__name__})") from reason


def numbers_in(file: str) -> tuple[float, float] | None:
    """The smallest and the largest number in an image file, as the file has them; raises BadSample."""
    with opened(file) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            colours = _colours_of_16_bits(file, image)
            return range_of(np.asarray(image) if colours is None else colours)
        except Refused as reason:
            raise BadSample(file, str(reason)) from reason
        except Exception as reason:  # as above
            raise BadSample(file, f"it is damaged ({reason or type(reason).__name__})") from reason


def load(file: str) -> None:
    """Decode an image file, whatever its numbers mean; raises BadSample."""
    with opened(file) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
        except Exception as reason:  # as above
            raise BadSample(file, f"it is damaged ({reason or type(reason).__name__})") from reason


def _colours_of_16_bits(file: str, image: Image.Image) -> NDArray[np.uint16] | None:
    """[H, W, C]; None for all other images."""
    if depth_of(image) in (None, image.mode):
        return None
    with opened(file) as again:
        return colours_of_16_bits(image, again)


def pixels_of(image: Image.Image, color_mode: str, rule: PixelRule = NO_RULE) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] or, for GRAY, [H, W] of any Pillow image; raises Refused (kdcli.data.pixel_values)."""
    return _converted(as_bytes(image, rule), color_mode)


def _converted(image: Image.Image, color_mode: str) -> NDArray[np.uint8]:
    mode = "L" if color_mode == "GRAY" else "RGB"
    pixels = np.array(image if image.mode == mode else image.convert(mode), dtype=np.uint8)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if color_mode == "BGR" else pixels
