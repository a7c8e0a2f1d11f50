"""What the charts are drawn from."""

from __future__ import annotations

import html
import json
import re

import pytest

from kdcli.report.charts import FEW, joined_bins, readable
from kdcli.report.report_data import Bin


def test_bins_of_few_images_are_put_together() -> None:
    bins = [Bin(0.9, 0.8, 30), Bin(0.1, 0.0, 2), Bin(0.3, 0.5, 8), Bin(0.5, 0.4, 20), Bin(1.0, 1.0, 0)]
    joined = joined_bins(bins)
    assert [one.count for one in joined] == [10, 20, 30]
    # (2 * 0.1 + 8 * 0.3) / 10 and (2 * 0 + 8 * 0.5) / 10
    assert abs(joined[0].confidence - 0.26) < 1e-12 and abs(joined[0].accuracy - 0.4) < 1e-12


def test_the_last_bin_joins_the_one_before() -> None:
    joined = joined_bins([Bin(0.2, 0.2, 50), Bin(0.6, 0.5, 30), Bin(0.9, 1.0, 3)])
    assert [one.count for one in joined] == [50, 33]


def test_no_image_is_lost_and_large_runs_need_more_than_a_few() -> None:
    bins = [Bin((k + 0.5) / 15, 0.5, 12 if k < 5 else 1000) for k in range(15)]
    joined = joined_bins(bins)
    assert sum(one.count for one in joined) == sum(one.count for one in bins)
    assert min(one.count for one in joined) >= 0.01 * sum(one.count for one in bins) > FEW
    assert [one.count for one in joined_bins([Bin(0.5, 0.5, 3)])] == [3] and joined_bins([]) == []


def test_steps_are_read_in_full_and_levels_have_none() -> None:
    pytest.importorskip("matplotlib")

    def draw(axes: object) -> None:
        axes.plot([0, 0.25, 123456, 200000], [1.0, 2.0, 3.0, 4.0], label="a")  # type: ignore[attr-defined]
        axes.axhline(2.5, label="b")  # type: ignore[attr-defined]
        axes.set_xlim(0, 200000)  # type: ignore[attr-defined]

    drawn = readable(draw, title="t")
    line, level = json.loads(html.unescape(re.findall(r'data-lines="([^"]*)"', drawn)[0]))["lines"]
    assert [point[2] for point in line["p"]] == ["0", "0.25", "123456", "200000"] and "level" not in line
    assert level["level"] == 1 and {point[3] for point in level["p"]} == {"2.5000"}
