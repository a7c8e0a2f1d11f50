"""Tensors as pictures: small ones as data URIs, sheets with boxes drawn on them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

SIDE = 160
"""Longest side of a picture, in pixels."""

HEAT = ((0.05, 0.03, 0.25), (0.35, 0.10, 0.45), (0.75, 0.22, 0.38), (0.97, 0.55, 0.20), (0.99, 0.95, 0.65))
"""From low to high, dark to light."""


def image_uri(
    image: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    side: int = SIDE,
) -> str:
    """An image [C, H, W], its normalisation undone; where there are not 3 channels the first one, in grey."""
    pixels = image.detach().float().cpu()
    if mean is not None and std is not None:
        pixels = pixels * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    elif pixels.min() < 0 or pixels.max() > 1:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    return _uri(_reduced(pixels if len(pixels) == 3 else pixels[:1], side))


def map_uri(feature: Tensor) -> str | None:
    """Where a feature [C, H, W] (or tokens [N, C]) is strong: its mean magnitude over the channels.

    None for a feature that has no places, as a vector.
    """
    strength = _strength(feature.detach().float().cpu())
    if strength is None:
        return None
    low, high = strength.min(), strength.max()
    scaled = (strength - low) / (high - low).clamp_min(1e-12)
    colours = torch.tensor(HEAT)
    at = scaled.nan_to_num(0.0).clamp(0, 1) * (len(HEAT) - 1)
    floor = at.floor().long().clamp_max(len(HEAT) - 2)
    share = (at - floor)[..., None]
    mixed = colours[floor] * (1 - share) + colours[floor + 1] * share
    return _uri(_reduced(mixed.permute(2, 0, 1)))


def _strength(feature: Tensor) -> Tensor | None:
    if feature.dim() == 3:
        return feature.abs().mean(0)
    if feature.dim() == 2:
        # Tokens: a square of patches, perhaps behind a class token (and registers).
        count = len(feature)
        side = int(count**0.5)
        if side > 1 and count - side * side <= 5:
            return feature[count - side * side :].abs().mean(1).reshape(side, side)
    return None


def _reduced(pixels: Tensor, most: int = SIDE) -> Tensor:
    longest = max(pixels.shape[1:])
    if longest <= most:
        return pixels
    height, width = (max(1, round(side * most / longest)) for side in pixels.shape[1:])
    return F.interpolate(pixels[None], (height, width), mode="area")[0]


def _uri(pixels: Tensor) -> str:
    """pixels [1 or 3, H, W] in 0..1."""
    values = (pixels.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")
"""One for each class, in turn."""

TITLE_HEIGHT = 14
SMALLEST_SIDE = 320
"""Small images are enlarged by whole factors up to about this, so that text can be read."""


def side_by_side(
    image: Tensor,
    boxes: Mapping[str, Tensor],
    class_names: Sequence[str],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    least_score: float = 0.3,
) -> Image.Image:
    """A picture of one image with its boxes, a panel for each name of `boxes`, in order.

    image: float32 [C, H, W], normalised by mean and std where they are given. boxes: [n, >=5] rows of x1,
    y1, x2, y2, class from 1, and a score where the boxes are predicted; those below least_score are left out.
    """
    pixels = _pixels(image, mean, std)
    factor = max(1, round(SMALLEST_SIDE / max(pixels.size)))
    width, height = pixels.width * factor, pixels.height * factor
    large = pixels.resize((width, height), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (width * len(boxes), height + TITLE_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (name, rows) in enumerate(boxes.items()):
        sheet.paste(large, (place * width, TITLE_HEIGHT))
        draw.text((place * width + 3, 1), name, fill="black")
        for row in rows.tolist():
            score = row[5] if len(row) > 5 else None
            if score is not None and score < least_score:
                continue
            label = int(row[4])
            colour = COLOURS[(label - 1) % len(COLOURS)]
            x1, y1, x2, y2 = (value * factor for value in row[:4])
            corners = (place * width + x1, TITLE_HEIGHT + y1, place * width + x2 - 1, TITLE_HEIGHT + y2 - 1)
            if corners[2] <= corners[0] or corners[3] <= corners[1]:
                continue
            draw.rectangle(corners, outline=colour, width=max(1, factor))
            text = class_names[label - 1] if label <= len(class_names) else str(label)
            text = text if score is None else f"{text} {score:.2f}"
            draw.text((corners[0] + 2, corners[1] + 1), text, fill=colour)
    return sheet


def _pixels(image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Image.Image:
    """The image as it was before normalising."""
    shown = image.detach().float().cpu()
    if mean is not None and std is not None:
        shown = shown * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    if shown.shape[0] == 1:
        shown = shown.expand(3, -1, -1)
    return Image.fromarray((shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
