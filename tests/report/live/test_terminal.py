"""What a training shows: plain lines, the live screen, and a terminal that goes away."""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from io import StringIO
from itertools import count
from pathlib import Path

import pytest

from kdcli.records import Finished, Notice, Record
from kdcli.report.live.plain_text import EpochSoFar, PlainText, finished_line, plan_text
from kdcli.report.live.recorder import Terminal, last_line
from tests.report.samples import RUN, evaluation, finished, plan, records, step


def shown(
    stream: StringIO, told: list[Record], *, live: bool = False, width: int = 100, tick: float = 1.0
) -> str:
    ticks = count()
    with Terminal(
        stream, spec="cfg.yaml", live=live, width=width, clock=lambda: next(ticks) * tick
    ) as terminal:
        for record in told:
            terminal.show(record)
    return stream.getvalue()


def test_plan_golden() -> None:
    assert plan_text(plan(processes=2)) == (
        "digits_kd · cpu · 2 processes · fp32 · runs/digits_kd\n"
        "\n"
        "network    parameters         FLOPs   runs until\n"
        "──────────────────────────────────────────────────\n"
        "student         9,999   1.23 MFLOPs   whole\n"
        "teacher0       25.6 M   4.09 GFLOPs   model.layer3\n"
        "\n"
        "term               student layer   shape           adapter              teacher layer            "
        "shape            loss      weight\n"
        + "─"
        * 130
        + "\njob0.teacher0.l2   model.layer3    [B, 64, 4, 4]   conv 1x1 64 to 256   "
        "teacher0: model.layer3   "
        "[B, 256, 4, 4]   l2_loss      0.5\n"
        "\n"
        "data   1,437 training images, batch 64 x 2 processes = 128\n"
        "steps  120 = 3 epochs x 40\n"
        "lr     0.1 effective\n"
    )


def test_plan_fits_a_narrow_terminal_without_losing_a_character() -> None:
    text = plan_text(plan(), width=70)
    assert max(map(len, text.splitlines())) <= 70 and "…" not in text


def test_lines_golden() -> None:
    told = list(records())[1:]
    assert shown(StringIO(), told, tick=0.0) == (
        "eval teacher0 at step 0: cross_entropy 0.2500  top1 98.50  in 0.5 s\n"
        "teacher0 is above chance\n"
        "epoch 1/3  step 1/40  loss 1.5000  (task.ce 1.0000  job0.teacher0.l2 0.5000)  lr 0.1"
        "  3,200 images/s  left 2.4 s\n"
        "epoch 1/3  step 40/40  loss 1.5000  (task.ce 1.0000  job0.teacher0.l2 0.5000)  lr 0.1"
        "  3,200 images/s  left 1.6 s\n"
        "eval student at step 40: cross_entropy 0.2500  top1 90.00  (best)  in 0.5 s\n"
        "saved runs/digits_kd/checkpoints/40\n"
        "epoch 2/3  step 40/40  loss 1.5000  (task.ce 1.0000  job0.teacher0.l2 0.5000)  lr 0.1"
        "  3,200 images/s  left 0.8 s\n"
        "eval student at step 80: cross_entropy 0.2500  top1 91.00  (best)  in 0.5 s\n"
        "saved runs/digits_kd/checkpoints/80\n"
        "epoch 3/3  step 40/40  loss 1.5000  (task.ce 1.0000  job0.teacher0.l2 0.5000)  lr 0.1"
        "  3,200 images/s  left 0.0 s\n"
        "eval student at step 120: cross_entropy 0.2500  top1 92.00  (best)  in 0.5 s\n"
        "saved runs/digits_kd/checkpoints/120\n"
        "warning: lr is high\n"
        "\n"
        "network         top1   cross_entropy   to teacher\n"
        "─────────────────────────────────────────────────\n"
        "student last   96.50          0.2500        -2.00\n"
        "student best   97.25          0.2000        -1.25\n"
        "teacher0       98.50          0.1000\n"
        "\n"
        "finished 120 steps in 3 min 07 s\n"
        "student: runs/digits_kd/student.safetensors · next: kdcli eval cfg.yaml\n"
    )


@pytest.mark.parametrize(
    ("resumed", "said"),
    [
        (0, "finished 120 steps in 7.7 s"),
        (40, "finished 120 steps, the last 80 in 7.7 s"),
        (120, "finished 120 steps, none of them now in 7.7 s"),
    ],
)
def test_a_resumed_run_tells_the_time_of_its_own_steps(resumed: int, said: str) -> None:
    finished = Finished(step=120, seconds=7.7, run_dir=Path("r"), student_path=None, primary="top1")
    assert finished_line(finished, resumed) == said


def test_lines_are_at_most_twenty_an_epoch_however_slow() -> None:
    text = shown(StringIO(), [step(n, 1000, 1, seconds=7.0) for n in range(1, 1001)], tick=7.0)
    assert len(text.splitlines()) <= 20 + 7 * 1000 // 60
    lines = PlainText(clock=lambda: 0.0)
    assert sum(bool(lines.of(step(n, 1000, 1))) for n in range(1, 1001)) == 2


def test_lines_break_a_long_silence() -> None:
    now = count(step=13)
    lines = PlainText(clock=lambda: float(next(now)))
    assert sum(bool(lines.of(step(n, 100_000, 1))) for n in range(1, 100)) > 5


def test_the_time_left_follows_an_epoch_that_is_quicker() -> None:
    """Once a cache is filled no teacher runs: two epochs at 0.2 s a step, then 0.1; 7 epochs of 40 steps are left."""
    epoch = EpochSoFar()
    for number in range(1, 121):
        epoch.add(step(number, 40, 10, seconds=0.2 if number <= 80 else 0.1))
    seconds = float(epoch.time_left().removesuffix(" s"))
    assert 28.0 <= seconds < 28.0 * 1.1


def test_the_bar_shows_the_teachers_level_what_has_passed_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    known = replace(plan(), primary="top1", levels={"teacher0": 98.5})
    lines = shown(
        Tty(), [known, step(1), evaluation(1, 91.0, best=True), step(2)], live=True, width=80
    ).splitlines()
    assert any("elapsed 2.0 s" in line and "left 2.4 s" in line for line in lines)
    assert any("top1:  teacher0 98.50" in line for line in lines), "before its first evaluation"
    assert any("top1:  teacher0 98.50  student 91.00  best 91.00" in line for line in lines)


def test_losses_are_means_over_the_steps_that_had_them() -> None:
    lines = PlainText(clock=lambda: 0.0)
    lines.of(replace(step(1, 2, 1), losses={"task.ce": 1.0}, total=1.0))
    text = lines.of(replace(step(2, 2, 1), losses={"task.ce": 3.0, "job.t.kd": 7.0}, total=10.0))
    assert "loss 5.5000  (task.ce 2.0000  job.t.kd 7.0000)" in text


def test_not_a_terminal_gets_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = StringIO()
    with Terminal(stream) as terminal:
        for record in [*records(), Notice(message="a\x1b[2Jb")]:
            terminal.show(record)
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


class Tty(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(Tty(), list(records()), live=True)
    assert "\x1b[" in text and "epoch 1/3" in text and "the best so far" in text
    assert text.rstrip("\n").splitlines()[-1].endswith("next: kdcli eval cfg.yaml")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0, "the cursor comes back"


def test_screen_without_colour_has_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    codes = set(re.findall(r"\x1b\[([0-9;]*)m", shown(Tty(), list(records()), live=True)))
    assert codes <= {"", "0", "1", "2"}


def test_screen_draws_at_most_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Tty()
    steps: list[Record] = [step(n, 5000, 1) for n in range(1, 5000)]
    text = shown(stream, steps, live=True, tick=0.001)
    assert text.count("loss 1.5000") <= 52


def test_a_burst_of_steps_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    steps = [step(n, 20_000, 1) for n in range(1, 5000)]
    for live in (True, False):
        with Terminal(Tty(), live=live) as terminal:
            start = time.process_time()
            for record in steps:
                terminal.show(record)
            assert time.process_time() - start < 0.5, "0.1 ms a step, on a busy machine"


class Broken(Tty):
    """A terminal that hangs up after a while."""

    left = 10

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)

    error: OSError = BrokenPipeError()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EIO, "Input/output error")])
def test_a_terminal_that_goes_away_never_stops_the_training(
    live: bool, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setenv("TERM", "xterm-256color")
    stream, before = Broken(), (sys.stdout, sys.stderr)
    stream.error = error
    shown(stream, list(records()), live=live)
    assert (sys.stdout, sys.stderr) == before


def test_quiet_shows_warnings_and_the_last_line() -> None:
    stream = StringIO()
    with Terminal(stream, quiet=True) as terminal:
        for record in records():
            terminal.show(record)
    assert stream.getvalue() == (
        "warning: lr is high\n"
        "student: runs/digits_kd/student.safetensors · next: kdcli eval runs/digits_kd/spec.resolved.yaml\n"
    )


def test_last_line_quotes_and_does_without_a_student() -> None:
    done = finished()
    assert last_line(done, "my cfg.yaml").endswith("kdcli eval 'my cfg.yaml'")
    assert last_line(done, ["c.yaml", "trainer.max_epoch=2"]).endswith("eval c.yaml trainer.max_epoch=2")
    bare = Finished(step=1, seconds=1.0, run_dir=RUN, student_path=None, primary="top1")
    assert last_line(bare, "c.yaml") == "run: runs/digits_kd · next: kdcli eval c.yaml"


def test_a_run_without_teachers_is_compared_with_none() -> None:
    stream = StringIO()
    with Terminal(stream) as terminal:
        terminal.show(evaluation(1, 50.0))
        terminal.show(Finished(step=1, seconds=1.0, run_dir=RUN, student_path=None, primary="top1"))
    assert "to teacher" not in stream.getvalue()
