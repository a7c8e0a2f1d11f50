"""The charts of report_data.json: accuracy by class, reliability, similarity of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdcli.report.drawing import INK, Axes, Chart, legend_above, line_look
from kdcli.report.report_sections import Bin, ClassAccuracy, Similarity

CLASSES = 30


def class_chart(data: ClassAccuracy) -> tuple[Chart, str]:
    """A dot for each network on each class, those where they differ most; and a remark."""
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


def reliability_chart(data: Mapping[str, Sequence[Bin]]) -> Chart:
    """How often an answer is right against how sure it was said to be."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="perfectly calibrated")
        for index, (name, bins) in enumerate(data.items()):
            known = sorted((one for one in bins if one.count), key=lambda one: one.confidence)
            xs, ys = [one.confidence for one in known], [one.accuracy for one in known]
            axes.plot(xs, ys, marker="o", markersize=4, label=name, **line_look(index))
        axes.set_xlabel("confidence")
        axes.set_ylabel("share of right answers")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.legend(loc="upper left", fontsize=9)

    return Chart("reliability", draw, height=3.6)


def similarity_chart(data: Similarity) -> Chart:
    """Student layers down, teacher layers across; the lighter the more alike."""
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
