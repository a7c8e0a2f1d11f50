"""What a terminal of 80 and of 140 columns shows, in screens_80.txt and screens_140.txt.

`python -m tests.report.test_screens` writes both anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdcli.analysis.layers import inspect
from kdcli.analysis.pairs import fitting_pairs
from kdcli.cli import app
from kdcli.commands.init import sample_specs, summary_of
from kdcli.distill.mimickers import MIMICKERS
from kdcli.errors import Diagnostic
from kdcli.losses import LOSSES
from kdcli.losses.parts.describe import describe
from kdcli.records import Baseline, NetworkFacts
from kdcli.reference.methods import method_of
from kdcli.report.analysis_text import networks_text, pairs_text
from kdcli.report.console import as_text, display_width, packed
from kdcli.report.diagnostics import render
from kdcli.report.live.plain_text import EpochSoFar, plan_text
from kdcli.report.reference_text import losses_text, samples_text
from kdcli.report.results_table import eval_text, finished_table
from kdcli.spec.networks import read_networks
from tests.report.samples import MISSPELT, finished, plan, span, step
from tests.report.test_results_table import ROWS

WIDTHS = (80, 140)
ALONE = Baseline(last={"top1": 91.0, "cross_entropy": 0.31}, source="runs/student_alone")


def start(width: int | None) -> str:
    """The table at the start of a training, with what the guard measured."""
    pairs = (
        plan().pairs[0],
        replace(plan().pairs[0], term="mimic_job1.teacher1.a_loss_with_a_long_name", teacher="teacher1"),
    )
    networks = (*plan().networks, NetworkFacts(name="teacher1", parameters=77_754, runs_until="model.layer3"))
    pulls = {pair.term: 0.25 for pair in pairs}
    even = {pair.term: 2.0 for pair in pairs}
    shown = replace(plan(), networks=networks, pairs=pairs, pulls=pulls, even_weights=even, constants=pulls)
    return plan_text(shown, width=width)


def losses(width: int | None) -> str:
    kinds: dict[str, list] = {}
    for name in ("ce_loss", "mlkd", "tfkd_self", "rkd", "review"):
        if name in LOSSES:
            kinds.setdefault(LOSSES[name].kind, []).append(describe(name))
    return losses_text(kinds, [method_of(name) for name in ("base", "CRD") if name in MIMICKERS], width=width)


@cache
def layers() -> dict:
    parsed = read_networks(str(sample_specs()["digits_kd"]), [])
    return dict(inspect(parsed, size=(1, 8, 8), plugins=(), say=lambda text: None))


def features(width: int | None) -> str:
    return networks_text({name: rows[:20] for name, rows in layers().items()}, width=width)


def fitting(width: int | None) -> str:
    return pairs_text({"teacher0": fitting_pairs(layers()["net"], layers()["teacher0"])}, "", width=width)


def samples(width: int | None) -> str:
    known = {
        name: summary_of(path) for name, path in sample_specs().items() if name.startswith(("cifar", "demo"))
    }
    return samples_text(known, width)


def problems(width: int | None) -> str:
    wide = f"  概念: {{\t学生: [{', '.join(['模型'] * 12)}], weigth: 2, and: {{so: on}}}}"
    message = "unknown key `weigth` in the arguments of the loss of `mimic_job0` that compares the last maps of both"
    found = Diagnostic(
        code="KD203", message=message, help="did you mean `weight`?", span=span(wide, "weigth", line=4)
    )
    return render([MISSPELT, found], width=width)


def result(width: int | None) -> str:
    many = {f"metric_{name}": 0.5 for name in "abcdefgh"}
    done = finished()
    done = replace(done, last={**done.last, **many}, best={**done.best, **many})
    return as_text(finished_table(done, baseline=ALONE), width=width)


def evaluated(width: int | None) -> str:
    teachers = [replace(ROWS[1], network=f"teacher{number}") for number in range(4)]
    return eval_text([ROWS[0], *teachers], primary="top1", baseline=ALONE, width=width)


def evaluated_pair(width: int | None) -> str:
    return eval_text(ROWS, primary="top1", width=width)


def progress(width: int | None) -> str:
    epoch = EpochSoFar()
    losses = {"task.loss": 1.0, "mimic_job0.teacher0.loss": 0.5, "mimic_job1.teacher1.loss": 0.25}
    epoch.add(replace(step(1), losses=losses))
    return packed([*epoch.line_fields(), epoch.speed_mean()], 100_000 if width is None else width) + "\n"


def help_of(*words: str) -> Callable[[int | None], str]:
    def shown(width: int | None) -> str:
        environment = {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width or 400)}
        text = CliRunner().invoke(app, [*words, "--help"], env=environment).output
        return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"

    return shown


SCREENS: dict[str, Callable[[int | None], str]] = {
    "start": start,
    "progress": progress,
    "result": result,
    "eval, four teachers": evaluated,
    "eval": evaluated_pair,
    "methods": losses,
    "inspect-features": features,
    "inspect-features --pairs": fitting,
    "init": samples,
    "diagnostics": problems,
    "help": help_of(),
    "help of validate": help_of("validate"),
}


def golden(width: int) -> Path:
    return Path(__file__).with_name(f"screens_{width}.txt")


def sections(width: int) -> dict[str, str]:
    parts = re.split(r"^== (.+)\n", golden(width).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_as_recorded(name: str, width: int) -> None:
    assert SCREENS[name](width) == sections(width)[name]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_screen_is_left_over(width: int) -> None:
    assert list(sections(width)) == list(SCREENS)


TOLD_ANEW = ("help", "help of validate")
"""Typer's own layout: only that it fits."""


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_fits_and_no_word_is_broken(name: str, width: int) -> None:
    text = SCREENS[name](width)
    assert max(map(display_width, text.splitlines())) <= width
    if name in TOLD_ANEW:
        return
    whole = set(SCREENS[name](None).split())
    # Of the spec's lines a window is shown.
    lines = [line for line in text.split("left out here:")[0].splitlines() if " | " not in line]
    for word in " ".join(lines).split():
        of = [one for one in whole if word in one]
        if word in whole or set(word) <= set("─") or "…" in word:
            continue
        assert of, f"{word!r} is no part of a word"
        assert any(_at_a_mark(word, one) for one in of), f"{word!r} is torn out of {of}"


def _at_a_mark(part: str, word: str) -> bool:
    """Whether a part of a word begins and ends where a long one may be cut: after a mark, before an underscore."""
    at = word.index(part)
    before, after = word[:at], word[at + len(part) :]
    starts = not before or before[-1] in "./,;:·(|+=" or part[0] == "_"
    return starts and (not after or part[-1] in "./,;:·(|+=" or after[0] == "_")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_carets_stand_under_their_word_whatever_the_width(width: int) -> None:
    for before in ("", "\t", "模型: ", "a: {b: " * 30, "模\t型" * 40):
        line = f"{before}weigth: 2, and: {'more ' * 30}"
        text = render([Diagnostic(code="KD203", message="m", span=span(line, "weigth"))], width=width)
        excerpt, carets = [one.split(" | ", 1)[1] for one in text.splitlines() if " | " in one]
        column = len(carets) - len(carets.lstrip())
        at = [place.start() for place in re.finditer("weigth", excerpt)]
        under = [display_width(excerpt[:place]) for place in at]
        assert column in under and carets.strip() == "^" * 6
        assert display_width(excerpt) + 7 <= max(width, 20)


def test_what_is_left_out_is_named_with_how_to_see_it() -> None:
    assert "left out here: shape, adapter" in start(80) and "less -S" in start(80)
    assert "left out" not in start(200) and "left out" not in start(None)


def test_columns_that_may_not_go_stand_in_a_second_table() -> None:
    text = evaluated(60)
    assert text.count("cross_entropy") == 2 and all(f"teacher{number}" in text for number in range(4))


def main() -> None:
    for width in WIDTHS:
        text = "".join(f"== {name}\n{shown(width)}" for name, shown in SCREENS.items())
        golden(width).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
