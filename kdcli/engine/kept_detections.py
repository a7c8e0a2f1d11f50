"""What detectors found on the test data, kept as COCO rows, drawn side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.errors import RunError, UsageError
from kdcli.models.detection.boxes import beyond_last_pixel
from kdcli.tasks.detection.pictures import side_by_side
from kdcli.tasks.detection.predictions import save_coco

MOST_PICTURES = 20
"""So many of the first test images are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What `kdcli eval` leaves behind: predictions in a file, pictures in a folder."""

    predictions: Path | None = None
    pictures: Path | None = None

    def require_detector(self, kind: str) -> None:
        """Refuse both for another task than detection."""
        for option, wanted in (("--save-predictions", self.predictions), ("--show", self.pictures)):
            if wanted is not None and kind != "detection":
                raise UsageError.of(f"`{option}` is for detectors, and this spec's task is {kind}")

    def try_out(self, networks: Sequence[str]) -> None:
        """Raise RunError KD567 where one of these networks' files, or a picture, can't be written.

        Asked before anything runs, so that no figures are lost; makes the folders, and leaves no file.
        """
        for path in [] if self.predictions is None else [self.file_of(name) for name in networks]:
            try:
                there = path.exists()
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab"):
                    pass
                if not there:
                    path.unlink()
            except OSError as error:
                raise _unwritable(path, error) from error
        if self.pictures is not None:
            try:
                self.pictures.mkdir(parents=True, exist_ok=True)
                with TemporaryFile(dir=self.pictures):
                    pass
            except OSError as error:
                raise _unwritable(self.pictures, error) from error

    def file_of(self, network: str) -> Path:
        """Where the rows of one network go: the student's to the file, a teacher's beside it with its name."""
        assert self.predictions is not None
        path = self.predictions
        if network == "student":
            return path
        return path.with_name(f"{path.stem}.{network}{path.suffix or '.json'}")

    def save(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Path]:
        """Write each network's rows to its file."""
        if self.predictions is None:
            return []
        written = []
        for name, own in rows.items():
            path = self.file_of(name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_coco(path, own)
            except OSError as error:
                raise _unwritable(path, error) from error
            written.append(path)
        return written


class Pictures:
    """Draws the first images of the test data: student, teachers and truth, a panel each."""

    def __init__(self, folder: Path | None, facts: DataFacts) -> None:
        self.folder, self.facts = folder, facts
        self.drawn = 0

    def draw(self, shown: Mapping[str, Mapping[str, Any]], batch: Mapping[str, Any]) -> None:
        """Write a picture for every image of the batch, while they are few."""
        if self.folder is None:
            return
        offset = int((self.facts.annotations or {}).get("box_offset", 0))
        for index, info in enumerate(batch["image_info"]):
            if self.drawn >= MOST_PICTURES:
                return
            lacking = beyond_last_pixel(info, offset)
            panels = {
                name: _found(outputs["dt_bboxes"], index, lacking)
                for name, outputs in shown.items()
                if "dt_bboxes" in outputs
            }
            truth = batch["boxes"][index].detach().cpu()
            panels["truth"] = torch.cat([truth[:, :4] + lacking, truth[:, 4:]], dim=1)
            height, width = int(info[0]), int(info[1])
            sheet = side_by_side(
                batch["image"][index, :, :height, :width],
                panels,
                self.facts.class_names or (),
                mean=self.facts.mean,
                std=self.facts.std,
            )
            path = self.folder / f"{batch['image_ids'][index]}.png"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                sheet.save(path)
            except OSError as error:
                raise _unwritable(path, error) from error
            self.drawn += 1


def _found(boxes: Tensor, index: int, lacking: Tensor) -> Tensor:
    """One image's boxes [n, 6]: edges, class, score."""
    own = boxes[boxes[:, 0] == index].detach().float().cpu()
    edges = own[:, 1:5] + lacking
    return torch.cat([edges, own[:, 6:7], own[:, 5:6]], dim=1)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError.of(
        "KD567",
        f"cannot write {path}: {error.strerror or error}",
        "`--save-predictions` names a file and `--show` a folder, where there is room and may be written",
    )
