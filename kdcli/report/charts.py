"""Charts drawn with matplotlib, as SVG for report.html or as image files: curves, classes, reliability, CKA.

SVG follows the page, light or dark: ink and grid are sentinel colours while matplotlib draws and CSS variables
afterwards; the lines' colours are of a middle tone that shows on both backgrounds, and lines differ in their
dashes too.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib import import_module
from io import BytesIO
from typing import Any, TypeAlias

from kdcli.errors import RunError
from kdcli.report.html_elements import Line, Plotted, chart
from kdcli.report.quantities import measure, metric_words
from kdcli.report.recorded_run import Curve, RecordedRun, StepRecords
from kdcli.report.report_data import Bin, ClassAccuracy, PrecisionByClass, Similarity
from kdcli.report.results_table import metric_names

Axes: TypeAlias = Any
"""matplotlib.axes.Axes, which need not be installed."""

INK, GRID = "#0a0b0c", "#0a0b0d"
PALETTE = ("#3b82c4", "#e0762f", "#2e9e6b", "#c2528b", "#8a6fd1", "#b59a1f", "#4fa8b8", "#9a6b4f")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def need_matplotlib() -> None:
    """Raise RunError KD755 if matplotlib is not installed."""
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise RunError.of(
            "KD755", "drawing curves needs matplotlib", "install it with `pip install 'kdcli[report]'`"
        ) from error


def matplotlib_is_there() -> bool:
    """Whether charts can be drawn."""
    try:
        need_matplotlib()
    except RunError:
        return False
    return True


def line_look(index: int) -> dict[str, Any]:
    """matplotlib's arguments for colour and dashes of the index-th line."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": DASHES[(index // 2) % len(DASHES)],
    }


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, as SVG or PNG. draw fills matplotlib's axes; width and height in inches."""

    title: str
    draw: Callable[[Axes], None]
    width: float = 4.6
    height: float = 2.9

    def svg(self) -> str:
        """An <svg> element for report.html."""
        return svg(self.draw, title=self.title, width=self.width, height=self.height)

    def readable(self) -> str:
        """The same with its lines' values, which are shown where the pointer or the keyboard is."""
        return readable(self.draw, title=self.title, width=self.width, height=self.height)

    def png(self) -> bytes:
        """The content of a PNG file, dark on white."""
        return picture(self.draw, "png", width=1.2 * self.width, height=1.2 * self.height, dpi=120)


def svg(draw: Callable[[Axes], None], *, title: str, width: float = 4.6, height: float = 2.9) -> str:
    """An <svg> element. draw fills the axes; the fewer inches of width and height, the larger the text."""
    return _for_page(draw, title, width, height)[0]


def readable(draw: Callable[[Axes], None], *, title: str, width: float = 4.6, height: float = 2.9) -> str:
    """An <svg> element with the values of its labelled lines, for report.html."""
    drawn, axes = _for_page(draw, title, width, height)
    return chart(drawn, _plotted(axes))


def _for_page(draw: Callable[[Axes], None], title: str, width: float, height: float) -> tuple[str, Axes]:
    need_matplotlib()
    content, axes = _drawn({**_STYLE, "svg.hashsalt": title}, draw, "svg", width, height, 72)
    drawn = content.decode().replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    drawn = _METADATA.sub("", drawn[drawn.index("<svg") :])
    label = f'<svg role="img" aria-label="{escape(title)}" '
    return _CONTROL.sub("\ufffd", drawn.replace("<svg ", label, 1)), axes


READ = 150
"""At most so many points of a line can be read by value."""


def _plotted(axes: Axes) -> Plotted:
    """The labelled lines of axes that have been drawn, in the units of their <svg>."""
    figure = axes.figure
    width, height = (72 * inches for inches in figure.get_size_inches())

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = figure.transFigure.inverted().transform(axes.transData.transform((x, y)))
        return round(width * across, 1), round(height * (1 - up), 1)

    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    lines = []
    for line in axes.get_lines():
        name = str(line.get_label())
        if name.startswith("_"):
            continue
        xs, ys = list(line.get_xdata()), list(line.get_ydata())
        level = line.get_transform() != axes.transData
        if level:  # it is drawn over the whole width
            xs = [left, right]
        every = -(-len(xs) // READ)
        kept = [k for k in range(len(xs)) if k % every == 0 or k == len(xs) - 1]
        points = [
            (*place(float(xs[k]), float(ys[k])), _across(float(xs[k])), measure(float(ys[k])))
            for k in kept
            if math.isfinite(float(xs[k])) and math.isfinite(float(ys[k]))
        ]
        lines.append(Line(name, str(line.get_color()), points, level=level))
    corners = (*place(left, top), *place(right, bottom))
    return Plotted(str(axes.get_xlabel()), lines, corners)


def _across(value: float) -> str:
    """A step or a share in words: `12345`, `0.8312`."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def picture(
    draw: Callable[[Axes], None], format: str, *, width: float = 8.0, height: float = 4.5, dpi: int = 150
) -> bytes:
    """The content of an image file, dark on white; format is svg, png or pdf."""
    need_matplotlib()
    colours = {INK: "#222222", GRID: "#dddddd"}
    plain = {
        key: colours.get(value, value) if isinstance(value, str) else value for key, value in _STYLE.items()
    }
    plain |= {"savefig.facecolor": "white", "svg.hashsalt": "kdcli"}
    return _drawn(plain, draw, format, width, height, dpi)[0]


def _drawn(
    style: dict[str, Any], draw: Callable[[Axes], None], format: str, width: float, height: float, dpi: int
) -> tuple[bytes, Axes]:
    """The content of an image file, and the axes as they were drawn."""
    matplotlib, figures = import_module("matplotlib"), import_module("matplotlib.figure")
    buffer = BytesIO()
    with matplotlib.rc_context(style), _quiet():
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        # Without the date the same run gives the same file.
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(buffer, format=format, dpi=dpi, metadata=metadata)
    return buffer.getvalue(), axes


def legend_above(axes: Axes, labels: Sequence[str]) -> None:
    """A legend over the plot, where it hides no curve; long names one below the other."""
    columns = 1 if max(map(len, labels), default=0) > 18 else 2
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9, borderaxespad=0.2)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of missing glyphs (a Chinese class name): the browser brings its own fonts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


LINES = 8
_TASK = "total and task losses"
Series = tuple[list[float], list[float]]


def run_curves(run: RecordedRun, baseline: RecordedRun | None = None) -> dict[str, str]:
    """The curves of a run, readable by value, by title: each metric, losses, learning rate.

    baseline: a run whose metrics are drawn into the same charts.
    """
    charts: dict[str, str] = {}
    series = [record["metrics"] for record in run.evaluations.get(run.student, ())]
    for name in metric_names(series, run.primary):
        evaluated = sum(name in metrics for metrics in series)
        # The parts of a mean are in the table, and so is a figure that was measured once.
        if "." not in name and (evaluated > 1 or baseline is not None):
            title = metric_words(name)
            charts[title] = readable(partial(_metric, run=run, name=name, baseline=baseline), title=title)
    for title, lines in _losses(run.steps).items():
        charts[title] = readable(
            partial(_draw_losses, lines=lines), title=title, height=2.5 + 0.2 * len(lines)
        )
    if run.steps.rate.intervals:
        draw = partial(_rate, series=run.steps.rate.points())
        charts["learning rate"] = readable(draw, title="learning rate")
    return charts


def _losses(steps: StepRecords) -> dict[str, dict[str, Series]]:
    """Lines by chart, at most eight each: the total with the task's losses, then a chart for each job."""
    curves: dict[str, dict[str, Curve]] = {}
    if steps.total.intervals:
        curves[_TASK] = {"total": steps.total}
    for name, curve in steps.losses.items():
        group, _, rest = name.partition(".")
        of_task = group == "task" or not rest
        title, line = (_TASK, name) if of_task else (f"losses of {group}", rest)
        curves.setdefault(title, {})[line] = curve
    charts: dict[str, dict[str, Series]] = {}
    for title, lines in curves.items():
        names = list(lines)
        for start in range(0, len(names), LINES):
            part = f"{title} ({start // LINES + 1})" if len(names) > LINES else title
            charts[part] = {name: lines[name].points() for name in names[start : start + LINES]}
    return charts


def _draw_losses(axes: Axes, lines: Mapping[str, Series]) -> None:
    for index, (name, (xs, ys)) in enumerate(lines.items()):
        axes.plot(xs, ys, label=name, marker="." if len(xs) == 1 else None, **line_look(index))
    values = [y for _, ys in lines.values() for y in ys if math.isfinite(y)]
    if values and min(values) > 0 and max(values) / min(values) > 50:
        axes.set_yscale("log")
        # Matplotlib's own labels here are mathematics, which is off for the sake of users' names.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    _finish(axes, list(lines))


def _rate(axes: Axes, series: Series) -> None:
    axes.plot(*series, label="rate", marker="." if len(series[0]) == 1 else None, **line_look(0))
    top = max((rate for rate in series[1] if math.isfinite(rate)), default=0.0)
    axes.set_ylim(0, 1.08 * top or None)
    _finish(axes, [])


def _metric(axes: Axes, run: RecordedRun, name: str, baseline: RecordedRun | None) -> None:
    runs = (
        {run.student: run} if baseline is None else {run.student: run, f"baseline {baseline.name}": baseline}
    )
    labels: list[str] = []
    for label, one in runs.items():
        records = [r for r in one.evaluations.get(one.student, ()) if name in r["metrics"]]
        points = [(float(record["step"]), float(record["metrics"][name])) for record in records]
        if points:
            xs, ys = Curve(points).points()
            marker = "." if len(xs) < 40 else None
            axes.plot(xs, ys, label=label, marker=marker, **line_look(0 if one is run else 4))
            labels.append(label)
    levels = {other: values[name] for other, values in run.teachers.items() if name in values}
    for index, (other, level) in enumerate(levels.items(), start=1):
        look = {**line_look(index), "linestyle": (0, (5, 2))}
        axes.axhline(level, label=other, linewidth=1.2, **look)
    _finish(axes, [*labels, *levels] if len(labels) + len(levels) > 1 else [])


def _finish(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    if labels:
        legend_above(axes, labels)


CLASSES = 30


def class_chart(data: ClassAccuracy) -> tuple[Chart, str]:
    """Chart of accuracy on the classes where networks differ most, and a sentence on how many are left out."""
    names = list(data.networks)

    def gap(index: int) -> float:
        shares = [data.networks[name][index] for name in names]
        known = [share for share in shares if share is not None]
        return max(known) - min(known) if known else -1.0

    order = range(len(data.classes))
    shown = sorted(sorted(order, key=gap, reverse=True)[:CLASSES])
    left_out = len(data.classes) - len(shown)
    remark = (
        f"The {len(shown)} classes on which they differ most, of {len(data.classes)}." if left_out else ""
    )

    def draw(axes: Axes) -> None:
        rows = range(len(shown))
        for index, name in enumerate(names):
            shares = [data.networks[name][i] for i in shown]
            known = [(share * 100, row) for share, row in zip(shares, rows, strict=True) if share is not None]
            look = {**line_look(index), "linestyle": "none", "marker": "os^Dv<>P"[index % 8]}
            if index:  # hollow and larger, so that equal shares don't hide each other
                look |= {"markerfacecolor": "none", "markersize": 6 + 2 * index}
            axes.plot([x for x, _ in known], [y for _, y in known], label=name, **{"markersize": 5, **look})
        axes.set_yticks(list(rows), [data.classes[i] for i in shown], fontsize=8 if len(shown) > 12 else 10)
        axes.invert_yaxis()
        axes.set_xlabel("right answers, %")
        legend_above(axes, names)

    height = 1.2 + 0.22 * max(4, len(shown))
    return Chart("accuracy by class", draw, width=5.2, height=height), remark


FEW, FEW_SHARE = 10, 0.01
"""A bin of fewer images, or of less than this share of all, is put together with its neighbour."""


def joined_bins(bins: Sequence[Bin]) -> list[Bin]:
    """Bins in order of confidence, those of few images put together with the next (the last one with the one before).

    The share of right answers among two images is 0, 50 or 100 %, whatever the network is worth.
    """
    known = sorted((one for one in bins if one.count), key=lambda one: one.confidence)
    least = max(FEW, FEW_SHARE * sum(one.count for one in known))
    joined: list[Bin] = []
    for one in known:
        if joined and joined[-1].count < least:
            joined[-1] = _together(joined[-1], one)
        else:
            joined.append(one)
    if len(joined) > 1 and joined[-1].count < least:
        last = joined.pop()
        joined[-1] = _together(joined[-1], last)
    return joined


def _together(one: Bin, other: Bin) -> Bin:
    count = one.count + other.count
    return Bin(
        (one.confidence * one.count + other.confidence * other.count) / count,
        (one.accuracy * one.count + other.accuracy * other.count) / count,
        count,
    )


def reliability_chart(data: Mapping[str, Sequence[Bin]]) -> Chart:
    """Reliability diagram: share of right answers against confidence, a line for each network.

    The larger a dot, the more images have such a confidence.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="_sure as it should be")
        for index, (name, bins) in enumerate(data.items()):
            known = joined_bins(bins)
            most = max((one.count for one in known), default=1)
            xs, ys = [one.confidence for one in known], [one.accuracy for one in known]
            axes.plot(xs, ys, label=name, **line_look(index))
            sizes = [12 + 90 * one.count / most for one in known]
            axes.scatter(xs, ys, s=sizes, color=line_look(index)["color"], alpha=0.75, linewidths=0)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share of right answers")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.04)
        legend_above(axes, list(data))

    return Chart("reliability", draw, height=3.6)


def precision_chart(data: PrecisionByClass, overlap: str) -> Chart:
    """Precision against recall, a mean over classes, a line for each network. overlap: from which a box counts."""

    def draw(axes: Axes) -> None:
        for index, (name, curves) in enumerate(data.curves.items()):
            points = [
                (100 * x, y)
                for x, y in zip(data.recalls, curves.get(overlap, ()), strict=False)
                if y is not None
            ]
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, **line_look(index))
        axes.set_xlabel("recall, %")
        axes.set_ylabel("precision, %")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        legend_above(axes, list(data.curves))

    return Chart(f"precision by recall at overlap {overlap}", draw, height=3.2)


def similarity_chart(data: Similarity) -> Chart:
    """Heat map of linear CKA: student layers down, teacher layers across; the lighter the more alike."""
    rows, columns = len(data.student_layers), len(data.teacher_layers)

    def draw(axes: Axes) -> None:
        axes.grid(False)
        mesh = axes.pcolormesh(data.values, vmin=0, vmax=1, cmap="viridis")
        axes.invert_yaxis()
        size = 8 if max(rows, columns) > 10 else 9
        axes.set_yticks([i + 0.5 for i in range(rows)], list(data.student_layers), fontsize=size)
        axes.set_xticks(
            [i + 0.5 for i in range(columns)], list(data.teacher_layers), rotation=90, fontsize=size
        )
        axes.set_ylabel("student")
        axes.set_xlabel(data.teacher)
        axes.figure.colorbar(mesh, ax=axes, label="linear CKA")
        if rows * columns <= 100:
            for i, row in enumerate(data.values):
                for j, value in enumerate(row):
                    ink = "#ffffff" if value < 0.6 else "#010101"
                    axes.text(
                        j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8
                    )

    width = min(9.0, 3.0 + 0.34 * columns)
    return Chart(f"similarity to {data.teacher}", draw, width=width, height=min(9.0, 2.4 + 0.3 * rows))
