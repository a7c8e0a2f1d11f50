"""The pairs of a term: what the plan shows is what its loss is given, and where it says that something is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcli.check.check import CheckOptions, check
from kdcli.distill import terms
from kdcli.distill.layouts import Layout
from kdcli.distill.mimickers.defeat import DeFeatMimicker
from kdcli.distill.taps import Taps, View
from kdcli.distill.teacher import Labels
from kdcli.distill.terms import Term, sides_of
from kdcli.errors import SpecError
from kdcli.models.network import Network
from kdcli.records import Pair
from kdcli.spec.parse import ParsedSpec, parse
from tests.distill.methods import mimic_of
from tests.distill.specs import TEACHER, spec_with
from tests.distill.test_detector_mimickers import DEFEAT as DEFEAT_OPTIONS
from tests.distill.test_detector_mimickers import context, defeat_views
from tests.distill.test_mutual import mutual
from tests.training.detectors import DEFEAT, FEATURE, FRS, NECK, SAMPLE, detector
from tests.training.runs import run_of

Shapes = tuple[str, str]
FGD = FEATURE.replace("warm_up_iters: -1", "mimic_ins_type: FGD").replace(
    "type: l2_loss, kwargs: {feat_norm: true, batch_mean: true, loss_weight: 1.0}", "type: fgd"
)
WHOLE_NECK = FEATURE.replace(NECK, "[neck]")


def shape_of(value: Any) -> str:
    """A tensor's shape as the plan writes it."""
    assert isinstance(value, Tensor)
    return "[" + ", ".join(["B", *map(str, value.shape[1:])]) + "]"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, list[Shapes]]:
    """What every loss was called with, by `<teacher>.<loss>`: the shapes of student and teacher."""
    found: dict[str, list[Shapes]] = defaultdict(list)
    bind, forward = terms.bind, Term.forward
    now: list[str] = []

    def noted_forward(self: Term, *args: Any, **kwargs: Any) -> Tensor:
        now[:] = [f"{self.teacher}.{self.name}" if self.teacher else self.name]
        return forward(self, *args, **kwargs)

    def noted_bind(binding: Any, available: Mapping[str, Any]) -> dict[str, Any]:
        student, teacher = available["student"], available["teacher"]
        sides = zip(student, teacher, strict=True) if isinstance(student, list) else [(student, teacher)]
        found[now[0]] += [(shape_of(s), shape_of(t)) for s, t in sides]
        return bind(binding, available)

    monkeypatch.setattr(terms, "bind", noted_bind)
    monkeypatch.setattr(Term, "forward", noted_forward)
    return found


def shown(parsed: ParsedSpec) -> dict[str, list[Pair]]:
    """The pairs of the plan of validate, by `<teacher>.<loss>`."""
    checked = check(parsed, CheckOptions())
    assert checked.plan is not None, checked.findings
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for pair in checked.plan.pairs:
        pairs[pair.term.partition(".")[2]].append(pair)
    return pairs


CASES: dict[str, tuple[str, dict[str, int], tuple[str, Shapes]]] = {
    "base": (FEATURE, {"loss": 5}, ("neck.p6_pool", ("[B, 8, 11, 21]", "[B, 8, 11, 21]"))),
    "base_over_a_whole_neck": (WHOLE_NECK, {"loss": 5}, ("neck[4]", ("[B, 8, 11, 21]", "[B, 8, 11, 21]"))),
    "SampleFeature": (SAMPLE, {"feature_loss": 1}, ("neck.p2_conv", ("[B, 8, 7, 7]", "[B, 8, 7, 7]"))),
    "FRS": (FRS, {"neck_loss": 5, "pred_loss": 5}, ("preds[4]", ("[B, 3, 11, 21]", "[B, 3, 11, 21]"))),
    "DeFeat": (
        DEFEAT,
        {"neck_fg_loss": 5, "neck_bg_loss": 5, "backbone_loss": 3},
        ("adapt_neck_features[4]", ("[B, 8, 11, 21]", "[B, 8, 11, 21]")),
    ),
    "FGD": (FGD, {"loss": 5}, ("neck.p6_pool", ("[B, 8, 11, 21]", "[B, 8, 11, 21]"))),
}
"""The block, the pairs of each of its losses, and the student's side of one of these pairs."""


@pytest.mark.parametrize("method", CASES)
def test_the_plan_of_a_detector_shows_what_its_losses_are_given(
    given: Mapping[str, list[Shapes]], method: str
) -> None:
    mimic, counts, (layer, shapes) = CASES[method]
    pairs = shown(parse(detector(mimic, adapts=method in ("FRS", "DeFeat")), "d.yaml"))
    expected = {f"teacher0.{name}": count for name, count in counts.items()}
    assert {name: len(rows) for name, rows in pairs.items()} == expected
    # On tiny images first, then at the spec's own size, 672x1344: but for DeFeat, whose masks are drawn around boxes.
    losses = {name: given[name][-len(rows) :] for name, rows in pairs.items()}
    assert losses.keys() == given.keys() and len(losses) == len(counts)
    if method != "DeFeat":
        assert losses == {
            name: [(row.student_shape, row.teacher_shape) for row in rows] for name, rows in pairs.items()
        }
    rows = [row for found in pairs.values() for row in found]
    assert all(row.adapter == "" and row.student_layer and row.teacher_layer for row in rows)
    assert shapes in [(row.student_shape, row.teacher_shape) for row in rows if row.student_layer == layer]


def test_an_adapted_pair_is_shown_as_it_is_tapped(given: Mapping[str, list[Shapes]]) -> None:
    rows = shown(parse(detector(SAMPLE + "adapter: auto\n", planes=12), "d.yaml"))["teacher0.feature_loss"]
    assert [(row.student_shape, row.teacher_shape) for row in rows] == [("[B, 8, 7, 7]", "[B, 12, 7, 7]")]
    assert rows[0].adapter == "a 1x1 convolution 8 to 12"
    assert given["teacher0.feature_loss"] == [("[B, 12, 7, 7]", "[B, 12, 7, 7]")]


def test_the_plan_of_mutual_learning_shows_who_learns_from_whom(given: Mapping[str, list[Shapes]]) -> None:
    rows = shown(mutual())["loss"]
    assert [(row.student_layer, row.teacher_layer) for row in rows] == [
        ("logits", "peer_logits"),
        ("peer_logits", "logits"),
    ]
    assert [(row.student_shape, row.teacher_shape) for row in rows] == given["loss"]
    assert {(row.loss, row.weight, row.teacher) for row in rows} == {("kd_loss", 1.0, "")}


@pytest.mark.parametrize("loss", ["review", "l2_loss", "srrl", "tfkd_reg"])
def test_the_plan_of_a_classifier_shows_what_its_losses_are_given(
    given: Mapping[str, list[Shapes]], loss: str
) -> None:
    (rows,) = shown(spec_with(mimic_of(loss, TEACHER))).values()
    if loss == "tfkd_reg":
        assert [(row.student_layer, row.teacher_layer) for row in rows] == [("logits", "")]
        return
    adapted = [(row.teacher_shape if row.adapter else row.student_shape, row.teacher_shape) for row in rows]
    assert given["teacher0.loss"] == adapted


# Layouts


def test_layouts_are_found_where_a_network_shows_itself() -> None:
    net = Network({"model": torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.Flatten(2))})
    with Taps(net.eval(), ["model.0", "model.1", "model"]) as taps:
        view = taps.learn({"image": torch.rand(2, 3, 4, 6)})
    (known,) = view.layouts["model.0"]
    assert known == Layout(kind="map", channel_axis=1, known_from="module", grid=(4, 6), stride=(1, 1))
    # Flattened behind the channels, tokens have them first: a convolution made them. They are handed on behind.
    (tokens,), (handed,) = taps.layouts["model.1"], view.layouts["model.1"]
    grid = {"prefix": 0, "class_token": False, "grid": (4, 6), "stride": (1, 1)}
    assert tokens == Layout(kind="tokens", channel_axis=1, known_from="evidence", **grid)
    assert handed == Layout(kind="tokens", channel_axis=2, known_from="evidence", **grid)
    assert tokens.text == "tokens 0+4x6, channels first" and handed.text == "tokens 0+4x6"
    first, behind = view.features["model.0"], view.features["model.1"]
    assert isinstance(first, torch.Tensor) and isinstance(behind, torch.Tensor)
    assert torch.equal(behind, first.flatten(2).transpose(1, 2))


def test_a_layout_says_from_where_it_is_known() -> None:
    with run_of(spec_with(mimic_of("kd_loss", TEACHER))) as run:
        term = run.trainee.mimickers["mimic_job0"].term_of("teacher0.loss")  # type: ignore[operator]
        (pair,) = term.pairs
        logits = Layout(kind="logits", channel_axis=1, known_from="module")
        assert pair.student.layout == pair.teacher.layout == logits
    # A view without a pass is read by its number of axes, and says that nothing tells.
    view = View({"a": torch.zeros(2, 3, 4, 4), "b": torch.zeros(2, 3), "c": torch.zeros(2, 3, 4, 4, 4)})
    assert [side.layout for side in sides_of(view, "abc")] == [
        Layout(kind="map", channel_axis=1, grid=(4, 4)),
        Layout(kind="vector", channel_axis=1),
        Layout(kind="unknown", channel_axis=None),
    ]


def test_selected_classes_leave_what_is_known_of_the_other_taps() -> None:
    last = Layout(kind="map", channel_axis=3, known_from="module")
    logits = torch.zeros(2, 6)
    view = View({"a": torch.zeros(2, 4, 4, 8)}, {"logits": logits}, {"a": (last,)})
    seen = Labels(numbers=(1, 0, 2)).view(view, frozenset())
    assert seen.layouts == {"a": (last,)} and seen.outputs["logits"].shape == (2, 3)


# Places in the spec


def test_a_neck_layer_that_does_not_fit_is_told_at_its_own_place() -> None:
    student, teachers = defeat_views()
    (teacher,) = teachers.values()
    taps = list(teacher.features)
    wider = {
        tap: f if tap != taps[-1] else torch.cat([f, f], 1)  # type: ignore[list-item]
        for tap, f in teacher.features.items()
    }
    with pytest.raises(SpecError, match="KD430") as error:
        DeFeatMimicker(context(student, {"teacher": View(wider, teacher.outputs)}, options=DEFEAT_OPTIONS))
    assert {found.path for found in error.value.diagnostics} == {
        ("mimic", "jobs", "mimic_job0", "student", "mimic_name", len(taps) - 1)
    }
