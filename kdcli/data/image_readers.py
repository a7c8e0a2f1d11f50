"""Readers of image files: from a name in a list to pixels, nothing outside the image folder.

Only plain raster formats are decoded (Pillow would start other programs for some), at most
`PIXEL_LIMIT` pixels, and names can't lead out of `image_dir`.
"""

from __future__ import annotations

import os.path
import warnings
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdcli.data.sources import BadSample
from kdcli.errors import Diagnostic, SpecError, SpecPath
from kdcli.spec.places import Places

ColorMode = Literal["RGB", "BGR", "GRAY"]
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
PIXEL_LIMIT = 89_478_485
"""Pillow's own limit: a quarter of a gigabyte of RGB."""
MISSING = "it does not exist"
"""Why an image can't be read whose file is not there."""
LYING = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


class PillowReader:
    """Pixels by Pillow, EXIF orientation ignored, as torchvision does.

    image_dir: one folder, or one for each meta file. `source` and `memcached` are accepted for
    United-Perception's sake: files are always read from disk.
    """

    rotates = False

    def __init__(
        self,
        path: SpecPath,
        places: Places,
        *,
        image_dir: str | list[str],
        color_mode: ColorMode = "RGB",
        source: str | None = None,
        memcached: bool | None = None,
    ) -> None:
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
            if not os.path.isdir(self.roots[-1]):
                message = f"there is no folder `{folder}`"
                help = f"`image_dir` is the folder of the images; {places.missing(folder, where)}"
                self.missing.append(Diagnostic(code="KD518", message=message, help=help, path=where))
        self.color_mode = color_mode
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

    def size(self, file: str) -> tuple[int, int]:
        """Height and width of what `read` gives, from the header alone; raises BadSample."""
        with opened(file) as image:
            turned = self.rotates and _orientation(image) in LYING
            return (image.width, image.height) if turned else (image.height, image.width)

    def _decode(self, file: str) -> NDArray[np.uint8]:
        return decoded(file, self.color_mode, rotate=self.rotates)


class OpencvReader(PillowReader):
    """Pixels as OpenCV gives them, turned by their EXIF orientation.

    Without OpenCV installed Pillow decodes, from the same JPEG library.
    """

    rotates = True

    def __init__(
        self,
        path: SpecPath,
        places: Places,
        *,
        image_dir: str | list[str],
        color_mode: ColorMode = "RGB",
        source: str | None = None,
        memcached: bool | None = None,
        to_float32: bool = False,
    ) -> None:
        super().__init__(
            path, places, image_dir=image_dir, color_mode=color_mode, source=source, memcached=memcached
        )
        self.has_opencv = find_spec("cv2") is not None
        if not self.has_opencv:
            self.notices += ("OpenCV is missing, Pillow decodes the images (pip install 'kdcli[opencv]')",)

    def _decode(self, file: str) -> NDArray[np.uint8]:
        if not self.has_opencv:
            return super()._decode(file)
        import cv2

        opened(file).close()
        flag = cv2.IMREAD_GRAYSCALE if self.color_mode == "GRAY" else cv2.IMREAD_COLOR
        pixels: Any = cv2.imdecode(np.fromfile(file, dtype=np.uint8), flag)
        if pixels is None:
            raise BadSample(file, "OpenCV can't decode it")
        return np.ascontiguousarray(pixels[:, :, ::-1]) if self.color_mode == "RGB" else pixels


def opened(file: str) -> Image.Image:
    """The image with only its header read; raises BadSample for what is missing, foreign or too large."""
    if not os.path.isfile(file):
        raise BadSample(file, MISSING if not os.path.exists(file) else "it is no regular file")
    with warnings.catch_warnings():
        # Pillow warns between its limit and twice that; here the limit is the limit.
        warnings.simplefilter("ignore")
        try:
            image: Image.Image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as reason:
            raise BadSample(file, f"it declares more than {2 * PIXEL_LIMIT:,} pixels") from reason
        except UnidentifiedImageError as reason:
            raise BadSample(file, f"it is none of {', '.join(FORMATS)}") from reason
        except Exception as reason:  # a hostile file can make a decoder raise anything
            raise BadSample(file, str(reason) or type(reason).__name__) from reason
    if image.width * image.height > PIXEL_LIMIT:
        image.close()
        raise BadSample(file, f"it declares {image.width}x{image.height} pixels, more than {PIXEL_LIMIT:,}")
    return image


def _orientation(image: Image.Image) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # a hostile file can make a decoder raise anything
            return None


def decoded(file: str, color_mode: str, *, rotate: bool = False) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] or, for GRAY, [H, W]; raises BadSample."""
    with opened(file) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if rotate:
                ImageOps.exif_transpose(image, in_place=True)
            return pixels_of(image, color_mode)
        except Exception as reason:  # as above
            raise BadSample(file, f"it is damaged ({reason or type(reason).__name__})") from reason


def pixels_of(image: Image.Image, color_mode: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] or, for GRAY, [H, W] of any Pillow image."""
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.array(image.convert("L" if color_mode == "GRAY" else "RGB"), dtype=np.uint8)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if color_mode == "BGR" else pixels
