"""Conversion to 8 bits a channel without alpha, by the `value_range` and `background` that the spec states.

What the file leaves open (which number is white, what lies behind a transparent pixel) the spec says, or
the image is refused with the line to write. Images of 8 bits a channel without alpha need no rule.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from kdcli.spec.ranges import PixelValue, Range

Byte = Annotated[int, Range(at_least=0, at_most=255)]
Background = tuple[Byte, Byte, Byte] | Byte | Literal["white", "black"]
ValueRange = tuple[PixelValue, PixelValue]

ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
CONVERTED = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
"""Modes without alpha that Pillow converts to RGB and to gray correctly."""
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
"""The byte order in which the low bytes stand where the high ones are."""


class Refused(Exception):
    """An image that can't be read without `value_range` or `background`: why, and the line to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRule:
    """What a spec states about pixel numbers and alpha.

    value_range: the numbers that become 0 and 255, for images of more than 8 bits a channel. background:
    what lies behind transparent pixels. where: the place in the spec for both, in words.
    """

    value_range: ValueRange | None = None
    background: tuple[int, int, int] | None = None
    where: str = "the image reader's kwargs"


def pixel_rule(value_range: Any, background: Any, where: str) -> PixelRule:
    """The rule as a spec writes it; raises ValueError."""
    if value_range is not None:
        numbers = list(value_range) if isinstance(value_range, (list, tuple)) else []
        if len(numbers) != 2 or not all(_is_number(n) for n in numbers) or numbers[0] >= numbers[1]:
            raise ValueError(f"`value_range` must be [low, high] with low < high, got {value_range}")
        value_range = (float(numbers[0]), float(numbers[1]))
    if background is not None:
        named = (
            {"white": 255, "black": 0}.get(background, background) if _hashable(background) else background
        )
        levels = list(named) if isinstance(named, (list, tuple)) else [named] * 3
        if len(levels) != 3 or not all(
            isinstance(n, int) and _is_number(n) and 0 <= n <= 255 for n in levels
        ):
            raise ValueError(
                f"`background` must be white, black, a number or [r, g, b] from 0 to 255, got {background}"
            )
        background = tuple(levels)
    return PixelRule(value_range=value_range, background=background, where=where)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _hashable(value: Any) -> bool:
    return isinstance(value, (str, int, float))


NO_RULE = PixelRule()


def depth_of(image: Image.Image) -> str | None:
    """The mode of an image of more than 8 bits a channel, with `;16` where a colour has 16; None for 8 bits.

    Known from the header alone, of an image that is not loaded yet.
    """
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        return image.mode
    if image.format in ("PNG", "TIFF") and any(";16" in _raw_mode(tile) for tile in _tiles(image)):
        return f"{image.mode};16"
    if image.format == "PPM" and image.mode == "RGB" and any(_highest(tile) > 255 for tile in _tiles(image)):
        return "RGB;16"
    return None


def has_alpha(image: Image.Image) -> bool:
    """Whether pixels may be transparent, by the header."""
    return image.mode in ALPHA or "transparency" in image.info


def colours_of_16_bits(image: Image.Image, again: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """[H, W, C] of an image whose depth_of is its mode with `;16`; again: the same file, opened once more.

    Pillow keeps the high bytes alone: the low ones are what it reads in the other byte order.
    """
    tiles = _tiles(again)
    if image.format == "PPM" and tiles[0][0] == "ppm" and again.fp is not None:
        again.fp.seek(tiles[0][2])
        read = np.frombuffer(again.fp.read(6 * image.width * image.height), dtype=">u2")
        return read.astype(np.uint16).reshape(image.height, image.width, 3)
    if not all(_raw_mode(tile).startswith(("RGB;16", "RGBA;16", "RGBX;16")) for tile in tiles):
        depth = depth_of(image)
        raise Refused(
            f"its mode is {depth}, of which only half of the bits can be read: save it as RGB or gray"
        )
    again.tile = [_with_raw_mode(tile, _swapped(_raw_mode(tile))) for tile in tiles]
    high, low = np.asarray(image).astype(np.int32), np.asarray(again)
    made: NDArray[np.uint16] = (high << 8 | low).astype(np.uint16)
    return made


def _tiles(image: Image.Image) -> list[Any]:
    """How Pillow is about to decode an image that is not loaded yet."""
    return list(getattr(image, "tile", ()))


def _raw_mode(tile: Any) -> str:
    return str(tile[3] if isinstance(tile[3], str) else tile[3][0]) if tile[3] else ""


def _highest(tile: Any) -> int:
    """The value of white by the header of a PPM file."""
    return int(tile[3][1]) if tile[0] in ("ppm", "ppm_plain") else 0


def _swapped(raw_mode: str) -> str:
    return raw_mode[:-1] + SWAPPED[raw_mode[-1]]


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    arguments = raw_mode if isinstance(tile[3], str) else (raw_mode, *tile[3][1:])
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def as_bytes(image: Image.Image, rule: PixelRule, colours: NDArray[np.uint16] | None = None) -> Image.Image:
    """The image with 8 bits a channel and no alpha; raises Refused.

    Numbers are mapped linearly, value_range to 0..255, rounded to the nearest (halves up) and clipped.
    A transparent pixel is mixed with the background in proportion to its alpha, rounded likewise.
    colours: colours_of_16_bits, of an image that has them.
    """
    deep = colours is not None or depth_of(image) is not None
    if not deep and not has_alpha(image):
        if image.mode not in CONVERTED:
            raise Refused(f"its mode is {image.mode}, which is not read: save it as RGB or gray")
        return image
    if deep:
        numbers = np.asarray(image) if colours is None else colours
        depth = image.mode if colours is None else f"{image.mode};16"
        pixels = _mapped(_without_alpha(numbers), depth, rule)
        alpha = _alpha_of(numbers, image)
        if alpha is not None and alpha.min(initial=255) < 255:
            pixels = _composed(pixels, alpha, rule)
        return Image.fromarray(np.ascontiguousarray(pixels))
    with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
    if with_alpha.getchannel("A").getextrema()[0] == 255:
        return with_alpha.convert("RGB")
    channels = np.asarray(with_alpha)
    return Image.fromarray(_composed(channels[:, :, :3], channels[:, :, 3], rule))


def range_of(numbers: NDArray[Any]) -> tuple[float, float] | None:
    """The smallest and the largest finite number of an image, alpha left out; None where there is none."""
    finite = _without_alpha(numbers)
    if finite.dtype.kind == "f":
        finite = finite[np.isfinite(finite)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def what_to_write(depth: str, found: tuple[float, float] | None, where: str) -> str:
    """Why numbers of more than 8 bits are not read without a value_range, and the line to write."""
    said = (
        f"its mode is {depth}" if found is None else f"its mode is {depth}, its numbers go {_from_to(found)}"
    )
    low, high = _proposed(found, depth)
    line = f"`value_range: [{low:.10g}, {high:.10g}]`"
    if "16" in depth and high != 65535:
        line += " (`[0, 65535]` where all 16 bits are meant)"
    return f"{said}, and which are black and white is not stated: write {line} in {where}"


def _from_to(found: tuple[float, float]) -> str:
    return f"from {found[0]:.6g} to {found[1]:.6g}"


def _proposed(found: tuple[float, float] | None, depth: str) -> tuple[float, float]:
    low, high = found or (0.0, 0.0)
    if low < 0:
        return low, max(high, low + 1)
    if depth == "F" and high <= 1:
        return 0, 1
    if high == 0:
        return 0, 65535
    return 0, 2 ** max(8, math.ceil(math.log2(math.ceil(high) + 1))) - 1


def _without_alpha(numbers: NDArray[Any]) -> NDArray[Any]:
    return numbers[:, :, :3] if numbers.ndim == 3 else numbers


def _alpha_of(numbers: NDArray[Any], image: Image.Image) -> NDArray[Any] | None:
    """Alpha of numbers of more than 8 bits, 0..255: the fourth channel, or one number that is transparent."""
    if numbers.ndim == 3 and numbers.shape[2] == 4 and image.mode == "RGBA":
        return (numbers[:, :, 3].astype(np.uint32) + 128) // 257
    clear = image.info.get("transparency")
    if isinstance(clear, (int, tuple)):
        same = numbers == np.array(clear)
        return np.where(same.all(axis=2) if same.ndim == 3 else same, 0, 255)
    return None


def _mapped(numbers: NDArray[Any], depth: str, rule: PixelRule) -> NDArray[np.uint8]:
    if rule.value_range is None:
        raise Refused(what_to_write(depth, range_of(numbers), rule.where))
    if numbers.dtype.kind == "f" and np.isnan(numbers).any():
        raise Refused(f"its mode is {depth}, and {int(np.isnan(numbers).sum())} of its numbers are NaN")
    low, high = rule.value_range
    levels = (np.clip(numbers.astype(np.float64), low, high) - low) * (255 / (high - low))
    return np.floor(levels + 0.5).astype(np.uint8)


def _composed(pixels: NDArray[np.uint8], alpha: NDArray[Any], rule: PixelRule) -> NDArray[np.uint8]:
    if rule.background is None:
        share = f"{100 * float((alpha < 255).mean()):.3g} % of its pixels are transparent"
        raise Refused(
            f"{share}, and what lies behind them is not stated: write `background: white` (or black, a number,"
            f" [r, g, b]) in {rule.where}"
        )
    behind = np.array(rule.background, dtype=np.uint16)
    part = alpha.astype(np.uint16)[:, :, None]
    colours = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    # At most 255 x 255 + 127: 16 bits hold it.
    return ((colours * part + behind * (255 - part) + 127) // 255).astype(np.uint8)
