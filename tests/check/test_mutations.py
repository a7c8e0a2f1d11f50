"""Every number of every sample set to what no one means: refused at its line, warned of, or known to be harmless."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from kdcli.check.check import CheckOptions, check
from kdcli.errors import Diagnostic, KdError
from kdcli.records import Step
from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from kdcli.spec.parse import compose_root, parse, read
from kdcli.spec.text.nodes import Mapping, Node, Scalar, Sequence
from tests.spec.test_finite import FOLDER, SAMPLES, with_numbers
from tests.training.runs import train_all

VALUES = ("0", "-1", ".nan", ".inf", "1e18")
LONGEST_SECONDS = 60

HARMLESS: dict[str, dict[str, str]] = {
    "0": {
        "random_seed": "a seed like any other",
        "padding": "no border is added",
        "mean": "nothing is subtracted",
        "means": "nothing is subtracted",
        "weight_decay": "no decay, torch's default",
        "momentum": "plain gradient descent, torch's default",
        "warm_up_iters": "no warm-up of the job",
        "warmup_iter": "no warm-up",
        "warmup_ratio": "the warm-up begins at 0",
        "warmup_epochs": "full weight from the first epoch",
        "range": "the temperature stays what `start` says",
        "num_workers": "data is loaded in the process itself",
        "flip_p": "never flipped",
        "gamma": "no row of a focal loss counts less than another",
        "top_n": "all boxes",
        "num_conv": "the prediction reads the neck's map itself",
        "alpha": "one half of a loss left out, as in ablations; a loss without gradient is found by the guard",
        "beta": "the same",
        "start_level": "the first level",
        "out_layers": "the first layer: what does not fit behind it is found where it does not",
        "fpn_levels": "the first level",
        "rpn_fpn_levels": "the first level",
        "rcnn_fpn_levels": "the first level",
        "sampling_ratio": "as many samples as fit, as torchvision has it",
        "allowed_border": "anchors end at the border",
        "ignore_iou_thresh": "whatever touches an ignored region is ignored",
        "low_quality_thresh": "the best candidate is taken however little it overlaps",
        "nms_iou_thresh": "of boxes that touch, one is kept",
        "bbox_score_thresh": "boxes of every score are kept",
        "pre_nms_score_thresh": "the same",
        "pre_nms_top_n": "all boxes: its docstring says so",
        "post_nms_top_n": "the same",
        "roi_min_size": "boxes of every size are kept",
    },
    "-1": {
        "mean": "a pixel value like any other: data may have been shifted",
        "means": "the same of boxes",
        "warm_up_iters": "no warm-up of the job, United-Perception's default",
        "class_dim": "the last dimension",
        "allowed_border": "no anchor is left out, United-Perception's way to say so",
        "top_n": "all boxes, United-Perception's way to say so",
        "pre_nms_top_n": "the same",
        "post_nms_top_n": "the same",
    },
    "1e18": {
        "random_seed": "a seed like any other",
        "clip_grad_norm": "no gradient is so long: nothing is clipped",
        "loss_weight": "the pull is measured at the first step, where the guard stops it",
        "alpha": "the same, of a part of a loss",
        "beta": "the same",
    },
}
"""What passes without a word, by value and key, and why that is right."""

Place = tuple[int, int]


def numbers(node: Node, key: str = "") -> Iterator[tuple[str, Scalar]]:
    """The numbers below a node that are written in the file itself, with their keys."""
    if isinstance(node, Scalar):
        if type(node.value) in (int, float) and node.span.written is None:
            yield key, node
    elif isinstance(node, Sequence):
        for item in node.items:
            yield from numbers(item, key)
    else:
        assert isinstance(node, Mapping)
        for entry in node.entries:
            yield from numbers(entry.value, entry.key)


@contextmanager
def time_limit() -> Iterator[None]:
    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer after {LONGEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said(text: str, name: str, *, build: bool = True) -> list[Diagnostic]:
    """What validate says of a text in the folder of the samples. build: the build stage too."""
    with time_limit():
        try:
            parsed = parse(text, name, base_dir=FOLDER)
            found = [*parsed.warnings, *check_references(parsed, tables())]
            if build and not any(one.severity == "error" for one in found):
                found += check(parsed, CheckOptions(places=parsed.places, plan=False)).findings
        except KdError as error:
            found = list(error.diagnostics)
    return found


def at_its_line(found: list[Diagnostic], key: str, line: int) -> bool:
    """Whether a finding stands in the line of the number, or names its key."""
    spans = [one.span.written or one.span for one in found if one.span is not None]
    return line in {span.line for span in spans} or any(key in one.message for one in found)


def outcome(found: list[Diagnostic], before: Counter[str], key: str, line: int, value: str) -> str:
    """What became of one number; before: the codes that are found without it."""
    if any(one.severity == "error" for one in found):
        # Layers that no longer fit each other are told where they meet, not where one was chosen.
        apart = any(one.code in ("KD402", "KD422", "KD430", "KD462") for one in found)
        return "refused" if apart or at_its_line(found, key, line) else "refused elsewhere"
    if Counter(one.code for one in found) - before:
        return "warned"
    return "harmless" if key in HARMLESS.get(value, {}) else "silent"


def outcomes(
    name: str, values: tuple[str, ...], *, build: bool = True, every: int = 1
) -> dict[str, list[str]]:
    """Every number of a sample, or every third, set to every value, by what became of it."""
    text = (FOLDER / name).read_text()
    before = Counter(one.code for one in said(text, name, build=build))
    found: dict[str, list[str]] = {}
    seen: set[Place] = set()
    for key, number in numbers(compose_root(text, name, overrides=[], base_dir=FOLDER)):
        place = (number.span.line, number.span.column)
        if place in seen:
            continue
        seen.add(place)
        if len(seen) % every:
            continue
        for value in values:
            if str(number.value) == value:
                continue
            broken, places = with_numbers(text, [number], value)
            ((line, _),) = places
            what = outcome(said(broken, name, build=build), before, key, line, value)
            found.setdefault(what, []).append(f"{name}:{line} {key}: {value}")
    return found


def test_every_number_of_a_sample_quickly() -> None:
    found = outcomes("digits_kd.yaml", ("0", "1e18"), build=False, every=3)
    assert not {"silent", "refused elsewhere"} & set(found), found
    assert len(found["refused"]) > len(found["harmless"]) > 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    "every", [pytest.param(3, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)]
)
def test_every_number_of_every_sample(name: str, every: int) -> None:
    """Every third number in the slow tests, all of them in the long ones."""
    found = outcomes(name, VALUES, every=every)
    print(name, {what: len(those) for what, those in found.items()})
    assert not {"silent", "refused elsewhere"} & set(found), found


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "-1", "1e18"])
@pytest.mark.parametrize("name", ["digits_student.yaml", "digits_kd.yaml", "digits_feature.yaml"])
def test_what_validates_trains_finite_or_is_stopped(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (FOLDER / name).read_text()
    monkeypatch.chdir(FOLDER)
    count = 0
    seen: set[Place] = set()
    for _, number in numbers(compose_root(text, name, overrides=[], base_dir=FOLDER)):
        place = (number.span.line, number.span.column)
        if place in seen:
            continue
        seen.add(place)
        broken, _ = with_numbers(text, [number], value)
        if any(one.severity == "error" for one in said(broken, name)):
            continue
        count += 1
        spec = tmp_path / f"{count}.yaml"
        spec.write_text(broken.replace("weights/", f"{FOLDER}/weights/"))
        changes = [f"saver.save_dir={tmp_path / str(count)}", "trainer.max_iter=3", "trainer.log_freq=1"]
        try:
            with time_limit():
                records = train_all(read(spec, changes))
        except KdError:
            continue
        steps = [record for record in records if isinstance(record, Step)]
        assert steps and all(abs(step.total) < float("inf") for step in steps), place
    assert count
