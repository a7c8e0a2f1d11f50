"""Runs side by side: folding by seed, judging differences, every format."""

from __future__ import annotations

import csv
import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from kdcli.errors import KdError, UsageError
from kdcli.report.compare_runs import (
    RunComparison,
    Verdict,
    compare_runs,
    compare_text,
    verdict_sentence,
    write_plot,
)
from kdcli.report.spread import judged, spread_of
from tests.report.run_folders import make_run

TEACHERS = {"teachers": {"teacher0": [{"name": "model"}]}}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three seeds of a baseline, three of a distillation, one of something hardly different."""
    alone = [make_run(tmp_path / f"alone_seed{i}", seed=i, top1=80.0 + i) for i in range(3)]
    kd = [make_run(tmp_path / f"kd_seed{i}", seed=i, top1=90.0 + i, spec=TEACHERS) for i in range(3)]
    near = make_run(tmp_path / "near", top1=81.5, spec={"ema": {}})
    return [*alone, *kd, near]


def test_seeds_are_folded(folders: list[Path]) -> None:
    compared = compare_runs([*folders, folders[0]])
    assert [(group.name, group.seeds) for group in compared.groups] == [
        ("alone", (0, 1, 2)),
        ("kd", (0, 1, 2)),
        ("near", (0,)),
    ]
    alone = compared.groups[0].best["top1"]
    assert (alone.mean, alone.std) == (81.0, 1.0)


@pytest.mark.parametrize("what", ["test", "train", "teacher"])
def test_runs_of_other_images_or_another_teacher_are_no_seeds_of_one(tmp_path: Path, what: str) -> None:
    runs = [make_run(tmp_path / f"kd_seed{i}", seed=i, top1=80.0 + i) for i in range(3)]
    for number, run in enumerate(runs):
        other = number == 2
        for side in ("train", "test"):
            digest = f"{int(other and what == side):016x}"
            (run / f"data_{side}_{digest}.tsv.gz").touch()
        env = json.loads((run / "env.json").read_text())
        env["teachers"] = {"teacher0": "b" if other and what == "teacher" else "a"}
        (run / "env.json").write_text(json.dumps(env))
    assert [group.seeds for group in compare_runs(runs).groups] == [(0, 1), (2,)]
    assert [group.seeds for group in compare_runs(runs[:2]).groups] == [(0, 1)]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = [make_run(tmp_path / "a" / "kd" / f"seed{i}", seed=i) for i in range(2)]
    other = [make_run(tmp_path / "b" / "kd" / f"seed{i}", seed=i, spec=TEACHERS) for i in range(2)]
    alone = make_run(tmp_path / "a" / "alone", spec={"ema": {}})
    compared = compare_runs([*one, *other, alone])
    assert [group.name for group in compared.groups] == ["a/kd", "b/kd", "alone"]


def test_a_run_beside_seeds_of_its_name(tmp_path: Path) -> None:
    seeds = [make_run(tmp_path / f"kd_seed{i}", seed=i) for i in range(2)]
    single = make_run(tmp_path / "kd", spec=TEACHERS)
    assert [group.name for group in compare_runs([*seeds, single]).groups] == ["kd_seed0 and 1 more", "kd"]
    names = [tmp_path / side / "kd" for side in "ab"]
    pair = [make_run(names[0]), make_run(names[1], spec=TEACHERS)]
    assert [group.name for group in compare_runs(pair).groups] == ["a/kd", "b/kd"]
    assert len(compare_runs([names[0], names[0] / ".." / "kd"]).groups[0].runs) == 1


def test_text_golden(folders: list[Path]) -> None:
    assert compare_text(compare_runs(folders)) == (
        "run     runs      best top1      last top1   last cross_entropy      state\n"
        "──────────────────────────────────────────────────────────────────────────\n"
        "alone      3   81.00 ± 1.00   81.00 ± 1.00      0.1900 ± 0.0100   finished\n"
        "kd         3   91.00 ± 1.00   91.00 ± 1.00      0.0900 ± 0.0100   finished\n"
        "near       1          81.50          81.50               0.1850   finished\n"
        "\n"
        "kd against alone: best top1 +10 ± 0 seed by seed (3), every run above every other: better beyond the spread\n"
        "  the specs differ in teachers\n"
        "near against alone: best top1 +0.5: no difference beyond the spread\n"
        "  the specs differ in ema\n"
    )


def test_single_runs_have_no_spread(folders: list[Path]) -> None:
    text = compare_text(compare_runs([folders[0], folders[3]]))
    assert "one run each, so nobody knows whether it is luck" in text and "±" not in text


def test_an_unfinished_run_is_not_folded_with_finished_ones(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"a{i}", seed=i, end=i > 0) for i in range(3)]
    compared = compare_runs(runs)
    assert [len(group.runs) for group in compared.groups] == [1, 2]
    assert "unfinished, step 100" in compare_text(compared)


@pytest.mark.parametrize(("metric", "word"), [("top1", "worse"), ("distill_loss", "better")])
def test_which_way_is_better(metric: str, word: str) -> None:
    judgement = judged([(1, 1.0), (2, 2.0)], [(1, 3.0), (2, 4.0)])
    sentence = verdict_sentence(Verdict(name="b", baseline="a", judgement=judgement), metric)
    assert sentence.endswith(f"every run below every other: {word} beyond the spread")


def test_json(folders: list[Path]) -> None:
    document = json.loads(compare_text(compare_runs(folders), "json"))
    assert document["groups"][1]["best"]["top1"] == {"mean": 91.0, "std": 1.0, "values": [90.0, 91.0, 92.0]}
    assert [verdict["within_spread"] for verdict in document["verdicts"]] == [False, True]


def test_csv_has_full_numbers(folders: list[Path]) -> None:
    rows = list(csv.DictReader(StringIO(compare_text(compare_runs(folders), "csv"))))
    assert len(rows) == 3 * 2 * 2
    assert rows[0] == {
        "run": "alone",
        "metric": "top1",
        "moment": "best",
        "runs": "3",
        "mean": "81.0",
        "std": "1.0",
        "finished": "true",
    }


def test_markdown_is_a_table(folders: list[Path]) -> None:
    lines = compare_text(compare_runs(folders), "md").splitlines()
    assert lines[0].startswith("| run | runs | best top1 |") and lines[1].startswith("| --- | ---: |")
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_copies_of_a_run_are_no_evidence(tmp_path: Path) -> None:
    alone = [make_run(tmp_path / f"alone{i}", seed=1, top1=80.0) for i in range(3)]
    near = [make_run(tmp_path / f"near{i}", seed=1, top1=80.5, spec={"ema": {}}) for i in range(2)]
    text = compare_text(compare_runs([*alone, *near]))
    assert "one run each, so nobody knows whether it is luck" in text and "±" not in text
    assert "alone: seed 1 ran 3 times and counts once, by the mean" in text


def test_names_without_a_common_stem(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=i) for i, name in enumerate(("monday", "friday"))]
    assert compare_runs(runs).groups[0].name == "monday and 1 more"
    runs = [make_run(tmp_path / name, seed=i) for i, name in enumerate(("digits1", "digits2"))]
    assert compare_runs(runs).groups[0].name == "digits"


def test_every_bad_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(KdError) as caught:
        compare_runs([tmp_path / "a", tmp_path / "b", make_run(tmp_path / "c")])
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["KD750", "KD750"]


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    assert math.isnan(spread_of([1.0, math.nan]).std or 0.0)
    runs = [make_run(tmp_path / f"r{i}", seed=i, top1=math.nan, epochs=1) for i in range(2)]
    compared = compare_runs(runs)
    json.loads(compare_text(compared, "json"), parse_constant=lambda word: pytest.fail(word))
    assert "nan" in compare_text(compared)


def test_runs_without_evaluation(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", end=False)
    lines = [line for line in (path / "metrics.jsonl").read_text().splitlines() if '"step"' in line[:20]]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "unfinished" in compare_text(compare_runs([path]))


def test_plot(folders: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    compared: RunComparison = compare_runs(folders)
    text = write_plot(compared, tmp_path / "all.svg").read_text()
    assert "alone (3 runs)" in text and "near" in text
    assert write_plot(compared, tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"cannot draw into `all\.doc`"):
        write_plot(compared, tmp_path / "all.doc")


def test_runs_that_saw_other_augmentations_are_not_equal(tmp_path: Path) -> None:
    def cached(views: int) -> dict[str, Any]:
        return {**TEACHERS, "mimic": {"teacher0": {"mimic_name": ["logits"], "cache": {"views": views}}}}

    alone = make_run(tmp_path / "alone", top1=80.0)
    two = make_run(tmp_path / "two", top1=81.0, spec=cached(2))
    four = make_run(tmp_path / "four", top1=82.0, spec=cached(4))
    text = compare_text(compare_runs([alone, two, four]))
    said = "not equal: of each image's augmentations two 2 cached; four 4 cached; alone fresh ones in each epoch\n"
    assert text.endswith(said)
    jobs = {"mimic_as_jobs": True, "job": {"teacher0": {"cache": {"views": 2}}}}
    again = make_run(tmp_path / "again", top1=83.0, spec={**TEACHERS, "mimic": jobs})
    assert "not equal" not in compare_text(compare_runs([two, again]))
    ignored = make_run(tmp_path / "base", spec={**cached(2), "runtime": {"runner": {"type": "base"}}})
    assert "not equal" not in compare_text(compare_runs([alone, ignored]))


def test_two_data_sets_are_not_judged(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, top1=top1, spec={"dataset": {"test": {"dataset": {"type": name}}}})
        for name, top1 in (("digits", 60.0), ("fashion", 93.89))
    ]
    compared = compare_runs(runs)
    text = compare_text(compared)
    assert text.endswith("\nfashion against digits: not comparable; test data: fashion, not digits\n")
    assert "+33.89" not in text
    (verdict,) = json.loads(compare_text(compared, "json"))["verdicts"]
    assert (verdict["comparable"], verdict["difference"], verdict["within_spread"]) == (False, None, None)
    assert verdict["differs"] == [{"what": "test data", "baseline": "digits", "run": "fashion"}]


def test_other_steps_are_named_and_judged(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"e{epochs}", epochs=epochs, top1=80.0 + epochs) for epochs in (1, 2)]
    (runs[1] / "spec.resolved.yaml").write_text((runs[1] / "spec.resolved.yaml").read_text() + "ema: {}\n")
    text = compare_text(compare_runs(runs))
    assert "best top1 +1; one run each" in text
    assert "  not the same experiment: steps: 40, not 20\n" in text


def test_one_page_of_all(folders: list[Path]) -> None:
    pytest.importorskip("matplotlib")
    page = compare_text(compare_runs(folders), "html")
    assert page.startswith("<!DOCTYPE html>") and "default-src &#x27;none&#x27;" not in page
    assert "<td>kd</td>" in page and "91.00 ± 1.00" in page and "better beyond the spread" in page
    assert '<th class="n">best top-1 accuracy, %</th>' in page and "last cross-entropy, nats" in page
    assert 'aria-label="top-1 accuracy, %"' in page and "alone (3 runs)" in page
