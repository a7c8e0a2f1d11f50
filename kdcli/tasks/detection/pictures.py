"""Pictures of one image with the boxes of several networks side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

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
    """A panel for each name of `boxes`, in order.

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
