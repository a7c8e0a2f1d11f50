"""What Python gets back: of a training its student, metrics and folder; of an evaluation its rows."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.disk import is_file, text_in
from kdcli.errors import RunError

if TYPE_CHECKING:
    from torch import nn

    from kdcli.records import Comparison, Evaluation, Finished

FRAME = '<iframe srcdoc="{page}" style="width:100%;height:640px;border:0" sandbox="allow-scripts"></iframe>'


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished training.

    folder: the run folder, which `kdcli eval`, `report`, `compare` and `export` read too. metrics: the student's at its
    best evaluation; last: at the last one; teachers: those of each teacher; primary: the metric that decides.
    evaluations: of the student, in order. In a notebook it shows its table and the run's report.
    """

    folder: Path
    primary: str
    metrics: Mapping[str, float]
    last: Mapping[str, float]
    teachers: Mapping[str, Mapping[str, float]]
    evaluations: tuple[Evaluation, ...]
    step: int
    seconds: float
    finished: Finished = field(repr=False)
    rank: int = 0
    _student: nn.Module | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        finished: Finished,
        evaluations: tuple[Evaluation, ...],
        student: nn.Module | None,
        *,
        rank: int = 0,
    ) -> Result:
        """The result of a training from its last record."""
        return cls(
            folder=finished.run_dir,
            primary=finished.primary,
            metrics=dict(finished.best),
            last=dict(finished.last),
            teachers={name: dict(metrics) for name, metrics in finished.teachers.items()},
            evaluations=evaluations,
            step=finished.step,
            seconds=finished.seconds,
            finished=finished,
            rank=rank,
            _student=student,
        )

    @property
    def student(self) -> nn.Module:
        """The student with the weights of its best evaluation, in eval mode, on the device that it was trained on.

        Where `net` is one whole model (yours, torchvision's, timm's) this is it: images [B, C, H, W], normalised as in
        training, to its own outputs. A network of several modules is kdcli's Network, called with {"image": images}:
        it returns its outputs by name. Adapters are left out. Raises RunError KD878 in any process but the first.
        """
        if self._student is None:
            raise RunError.of(
                "KD878",
                f"this is process {self.rank} of the run, and the first one has the student",
                "ask for it where `result.rank == 0`, or use kdcli.load_student(result.folder)",
            )
        return self._student

    @property
    def report(self) -> Path | None:
        """The run's report.html; None where it was not written."""
        page = self.folder / "report.html"
        return page if is_file(page) else None

    def __str__(self) -> str:
        from kdcli.report.console import as_text
        from kdcli.report.results_table import finished_table

        return f"{as_text(finished_table(self.finished)).rstrip()}\n\nrun: {self.folder}"

    def _repr_html_(self) -> str:
        page = self.report
        shown = "" if page is None else FRAME.format(page=html.escape(text_in(page), quote=True))
        return f"<pre>{html.escape(str(self))}</pre>{shown}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The networks of a run, measured side by side: the student first, then each teacher.

    networks: a row of metrics, size, speed and agreement for each; notices: what the user should know, in sentences.
    """

    networks: tuple[Comparison, ...]
    primary: str
    notices: tuple[str, ...] = ()

    @property
    def metrics(self) -> Mapping[str, float]:
        """The student's metrics."""
        return self.networks[0].metrics

    def __getitem__(self, network: str) -> Comparison:
        """The row of one network: `student`, `teacher0`."""
        found = {row.network: row for row in self.networks}
        if network not in found:
            raise KeyError(f"no network `{network}` was measured; there are: {', '.join(found)}")
        return found[network]

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.networks)

    def __len__(self) -> int:
        return len(self.networks)

    def __str__(self) -> str:
        from kdcli.report.results_table import eval_text

        return eval_text(self.networks, primary=self.primary).rstrip()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
