"""Boxes drawn where they are, a panel for each network."""

from __future__ import annotations

import torch

from kdcli.tasks.pictures import COLOURS, TITLE_HEIGHT, side_by_side


def test_a_panel_for_each_network() -> None:
    image = torch.zeros(3, 160, 160)
    truth = torch.tensor([[10.0, 20.0, 60.0, 80.0, 2.0]])
    found = torch.tensor([[30.0, 30.0, 50.0, 50.0, 1.0, 0.9], [0.0, 0.0, 9.0, 9.0, 1.0, 0.1]])
    sheet = side_by_side(
        image, {"truth": truth, "student": found}, ("coat", "bag"), mean=[0.5] * 3, std=[0.5] * 3
    )
    # Twice as large: 320 a panel.
    assert sheet.size == (640, 320 + TITLE_HEIGHT)

    def colour(x: int, y: int) -> str:
        return "#{:02x}{:02x}{:02x}".format(*sheet.getpixel((x, y + TITLE_HEIGHT)))  # type: ignore[misc]

    assert colour(100, 40) == COLOURS[1]  # the upper edge of the truth
    assert colour(320 + 61, 90) == COLOURS[0]  # the left edge of the prediction
    assert colour(320 + 1, 10) == "#808080"  # a weak box is left out, pixels are denormalised


def test_grey_images_and_empty_boxes_can_be_drawn() -> None:
    sheet = side_by_side(torch.ones(1, 400, 300), {"a": torch.tensor([[5.0, 5.0, 5.0, 9.0, 7.0]])}, ())
    assert sheet.size == (300, 400 + TITLE_HEIGHT)
