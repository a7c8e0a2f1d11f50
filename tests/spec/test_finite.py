"""NaN, infinity and whole numbers over 64 bits are refused wherever they stand, once, where they are written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcli.errors import Diagnostic, KdError, SpecError
from kdcli.spec.networks import parse_networks
from kdcli.spec.parse import compose_root, parse
from kdcli.spec.text.nodes import Mapping, Node, Scalar, Sequence
from kdcli.spec.text.overrides import parse_assignment
from tests.spec.specs import BASE, changed, findings

FOLDER = Path(__file__).parents[2] / "sample_configs"
SAMPLES = sorted(path.name for path in FOLDER.glob("*.yaml"))
ONES_OF_A_SAMPLE = 3
"""So many numbers of each sample are also replaced one by one; all of them are at once."""

Place = tuple[int, int]


def only(text: str, *assignments: str) -> Diagnostic:
    """The one finding of a text."""
    found = findings(text, *assignments)
    assert [one.code for one in found] == ["KD223"], found
    return found[0]


def place_of(one: Diagnostic) -> tuple[str, int, int]:
    assert one.span is not None
    return one.span.source, one.span.line, one.span.column


@pytest.mark.parametrize(
    "value", [".nan", ".NaN", ".inf", "-.inf", "+.INF", "1e999", "-1e999", "!!float .inf"]
)
@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("T: 4.0", "T: {}", "T"),
        ("loss_weight: 1.0\n  warm", "loss_weight: {}\n  warm", "loss_weight"),
        ("warm_up_iters: -1", "temperature: {}", "temperature"),
        ("max_epoch: 10", "max_epoch: {}", "max_epoch"),
        ("lr: 0.1", "lr: {}", "lr"),
        ("[4, 8]", "[4, {}]", "milestones[1]"),
        (
            "[*crop, {type: to_tensor}]",
            "[*crop, {{type: to_tensor, kwargs: {{std: [1, [{}]]}}}}]",
            "std[1][0]",
        ),
        ("type: resnet18", "type: {}", "type"),
        ("classes: &classes 10", "classes: &classes {}", "classes"),
        ("x-note: anything at all", "x-note: {{a: [1, {}]}}", "a[1]"),
        ("mimic_ins_type: base", "mimic_as_jobs: {}", "mimic_as_jobs"),
    ],
)
def test_one_error_at_the_line_and_column(old: str, new: str, key: str, value: str) -> None:
    text = changed((old, new.format(value)))
    one = only(text)
    assert one.message.startswith(f"`{key}` must be a finite number, got the number ")
    source, line, column = place_of(one)
    assert source == "cfg.yaml"
    written = text.splitlines()[line - 1][column - 1 :]
    assert written.startswith(value.removeprefix("!!float ")) or written.startswith(value)


@pytest.mark.parametrize(
    "assignment",
    [
        "mimic.cfgs.loss.kwargs.T=.nan",
        "crop.kwargs.size=.inf",
        "classes=-1e999",
        "mimic.cfgs.loss.kwargs={T: .nan}",
        "hooks.0.kwargs={deep: {deeper: [[.inf]]}}",
        "net.backbone.kwargs.normalize={type: solo_bn, kwargs: {eps: .nan}}",
        "trainer.ema={enable: true, kwargs: {decay: .nan}}",
        "saver=.nan",
    ],
)
def test_on_the_command_line(assignment: str) -> None:
    one = only(BASE, assignment)
    source, line, column = place_of(one)
    assert (source, line) == ("argument 1", 1)
    assert assignment[column - 1 :].startswith((".nan", ".inf", "-1e999"))


def test_a_number_too_large_says_so() -> None:
    one = only(changed(("T: 4.0", "T: 1e999")))
    assert one.help is not None and "`1e999`" in one.help


@pytest.mark.parametrize("value", [2**63, 10**300, 2**64, -(2**63) - 1])
def test_whole_numbers_over_64_bits(value: int) -> None:
    for key in ("runtime.random_seed", "dataset.batch_sampler.kwargs.batch_size", "trainer.clip_grad_norm"):
        assert "64 bits" in only(BASE, f"{key}={value}").message


def test_the_largest_whole_numbers() -> None:
    assert findings(BASE, f"runtime.random_seed={2**63 - 1}", f"x-least={-(2**63)}") == []


def test_a_float_that_counts_is_held_by_64_bits() -> None:
    found = findings(BASE, "dataset.batch_sampler.kwargs.batch_size=1e300")
    assert [one.code for one in found] == ["KD206"]
    assert "at most 9223372036854775807" in found[0].message


def test_words_stay_words() -> None:
    for word in ("'.nan'", '".inf"', "nan", "inf", "NaN", "Infinity", "!!str .nan"):
        assert findings(changed(("kd_cls", word), ("x-note: anything at all", f"x-note: [{word}]"))) == []


def test_a_building_block_is_told_once_where_it_is_written() -> None:
    text = changed(
        ("x-note: anything at all", "x-rate: &rate .nan\nx-block: &block {kwargs: {a: *rate, b: .inf}}"),
        ("lr: 0.1", "lr: *rate"),
        ("hooks:\n  - type: auto_save_best", "hooks:\n  - {type: auto_save_best, <<: *block}\n  - *block"),
    )
    found = [one for one in findings(text) if one.code != "KD203"]
    assert [(one.code, place_of(one)) for one in found] == [
        ("KD223", ("cfg.yaml", 1, 15)),
        ("KD223", ("cfg.yaml", 2, 40)),
    ]


def test_both_of_two_blocks_with_one_name() -> None:
    text = changed(("x-note: anything at all", "crop: &other {type: crop, kwargs: {size: .nan}}"))
    assert [one.code for one in findings(text)].count("KD223") == 1


def test_what_an_argument_puts_right_is_right() -> None:
    assert findings(changed(("lr: 0.1", "lr: .nan")), "trainer.optimizer.kwargs.lr=0.1") == []
    assert findings(changed(("&classes 10", "&classes .nan")), "classes=10") == []


def test_in_an_included_file(tmp_path: Path) -> None:
    (tmp_path / "optimizer.yaml").write_text("type: SGD\nkwargs:\n  lr: .inf\n")
    text = changed(("{type: SGD, kwargs: {lr: 0.1}}", "!include optimizer.yaml"))
    (one,) = findings(text, base_dir=tmp_path)
    assert one.code == "KD223" and one.span is not None and one.span.written is not None
    assert (one.span.written.source, one.span.written.line) == ("optimizer.yaml", 3)


@pytest.mark.parametrize(
    "text",
    [
        "net: {type: cifar_resnet8, kwargs: {widths: [1, .nan]}}\n",
        "type: cifar_resnet8\nkwargs: {widths: [1, .nan]}\n",
        "- {name: a, type: cifar_resnet8, kwargs: {widths: [1, .nan]}}\n",
        "teacher0: {type: cifar_resnet8, kwargs: {widths: [1, .nan]}}\n",
        "net: {type: cifar_resnet8}\ndataset: {train: {dataset: {type: fake, kwargs: {x: .nan}}}}\n",
    ],
)
def test_networks_alone(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_networks(text, "nets.yaml")
    found = [one for one in caught.value.diagnostics if one.code == "KD223"]
    (one,) = found
    _, line, column = place_of(one)
    assert text.splitlines()[line - 1][column - 1 :].startswith(".nan")


def test_networks_alone_by_argument() -> None:
    with pytest.raises(SpecError) as caught:
        overrides = [parse_assignment("net.kwargs.widths=[.inf]", 1)]
        parse_networks("net: {type: cifar_resnet8}\n", "nets.yaml", overrides=overrides)
    assert [one.code for one in caught.value.diagnostics] == ["KD223"]


# every number of every sample


def numbers(node: Node) -> Iterator[Scalar]:
    """The numbers below a node that are written in the file itself."""
    if isinstance(node, Scalar):
        if type(node.value) in (int, float) and node.span.written is None:
            yield node
    elif isinstance(node, Sequence):
        for item in node.items:
            yield from numbers(item)
    else:
        assert isinstance(node, Mapping)
        for entry in (*node.entries, *node.repeated):
            yield from numbers(entry.value)


def with_numbers(text: str, replaced: list[Scalar], value: str) -> tuple[str, set[Place]]:
    """The text with numbers replaced, and where the new ones stand."""
    lines = text.split("\n")
    places: set[Place] = set()
    moved: dict[int, int] = {}
    for scalar in sorted(replaced, key=lambda s: (s.span.line, s.span.column)):
        line = scalar.span.line
        start = scalar.span.column - 1 + moved.get(line, 0)
        end = scalar.span.end_column - 1 + moved.get(line, 0)
        written = lines[line - 1]
        start += written[start:end].index(scalar.text)  # after the number's anchor
        lines[line - 1] = written[:start] + value + written[start + len(scalar.text) :]
        moved[line] = moved.get(line, 0) + len(value) - len(scalar.text)
        places.add((line, start + 1))
    return "\n".join(lines), places


def told(text: str, name: str) -> set[Place]:
    with pytest.raises(KdError) as caught:
        parse(text, name, base_dir=FOLDER)
    found = [place_of(one) for one in caught.value.diagnostics if one.code == "KD223"]
    assert len(found) == len(set(found))
    return {(line, column) for _, line, column in found}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_number_of_a_sample(name: str) -> None:
    text = (FOLDER / name).read_text()
    found = list(numbers(compose_root(text, name, overrides=[], base_dir=FOLDER)))
    assert found
    for value in (".nan", ".inf", "-.inf", "1e999"):
        broken, places = with_numbers(text, found, value)
        assert told(broken, name) == places
    draw = random.Random(name)
    for one in draw.sample(found, min(ONES_OF_A_SAMPLE, len(found))):
        broken, places = with_numbers(text, [one], draw.choice([".nan", ".inf"]))
        assert told(broken, name) == places
