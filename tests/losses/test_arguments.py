"""Every argument of every loss does something, and a test holds a number of it."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from kdcli.losses import LOSSES

from .cases import Case, keyword_only, make_case, positional

ARGUMENTS = [(name, option) for name in sorted(LOSSES) for option in keyword_only(LOSSES[name].load())]

MOVED: dict[tuple[str, str], Any] = {
    ("cosine", "cosine_weight"): 0.5,
    ("cosine", "smooth_l1_weight"): 0.5,
    ("crd", "K"): 8,
    ("crd", "feat_dim"): 16,
    ("mgd", "mask_ratio"): 0.6,
    ("mlkd", "temperatures"): (2.0, 3.0),
    ("ofd", "kernel_size"): 3,
    ("pkt", "eps"): 0.01,
    ("review", "max_mid_channel"): 2,
    ("rkd", "eps"): 200.0,
    ("wkd_f", "eps"): 0.1,
    ("wkd_l", "max_per_class"): 1,
}
"""What an argument is moved to where a small step from its default would not reach the case's sizes."""

SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("bce_loss", "T"): {"from_logits": True},
    **{("crd", option): {"K": 16} for option in keyword_only(LOSSES["crd"].load())},  # 16384 take seconds
}
"""Further arguments that one works together with."""

SILENT = {
    ("crd", "momentum"): "it moves the memories, which the next batch reads",
    ("vid", "eps"): "the variance begins at `init_pred_var`, whatever its floor",
    **{(name, "gather"): "one process gathers nothing" for name, option in ARGUMENTS if option == "gather"},
}
"""Arguments without effect on the first batch of one process, and why."""


def moved(name: str, option: str) -> Any:
    """Another value than the argument's default."""
    if (name, option) in MOVED:
        return MOVED[name, option]
    target = LOSSES[name].load()
    default = keyword_only(target)[option].default
    function = target.__init__ if inspect.isclass(target) else target
    kind = get_type_hints(function)[option]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != default)
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else 0.6 * default


def value_of(name: str, kwargs: dict[str, Any]) -> float:
    """A loss of twelve samples at epoch 0: `fgd` has a corner as foreground, `pkd` a smaller student's map."""
    case = make_case(name, batch=12, dtype=torch.float64, kwargs=kwargs)
    student = case.inputs.get("student")
    if name == "fgd":
        assert isinstance(student, Tensor)
        case.inputs["mask"] = torch.zeros_like(student[:, :1])
        case.inputs["mask"][:, :, :2, :2] = 0.25
    if name == "pkd":
        assert isinstance(student, Tensor)
        case.inputs["student"] = student[:, :, ::2, ::2]
    return float(case.call().detach())


@pytest.mark.parametrize(("name", "option"), ARGUMENTS)
def test_an_argument_moved_from_its_default_changes_the_loss(name: str, option: str) -> None:
    setting = SETTINGS.get((name, option), {})
    still = value_of(name, setting)
    other = value_of(name, {**setting, option: moved(name, option)})
    assert (other == pytest.approx(still, rel=1e-7)) is ((name, option) in SILENT)


@pytest.mark.parametrize("name", [name for name, option in ARGUMENTS if option == "gather"])
def test_gathered_rows_are_related_as_one_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half of a batch, given the rows of the second, has the loss of the whole."""

    def half(case: Case, rows: slice) -> float:
        return float(case.call(**case.mapped(lambda x: x[rows])).detach())

    case = make_case(name, batch=8, dtype=torch.float64, kwargs={"gather": True})
    alone = make_case(name, batch=8, dtype=torch.float64, kwargs={"gather": False})
    whole = float(case.call().detach())
    gathered: list[Tensor] = []

    def note(rows: Tensor, *, gather: bool) -> Tensor:
        gathered.append(rows)
        return rows

    def join(rows: Tensor, *, gather: bool) -> Tensor:
        return torch.cat([rows, gathered.pop(0)]) if gather else rows

    module = sys.modules[LOSSES[name].path.partition(":")[0]]
    monkeypatch.setattr(module, "gather_rows", note)
    half(case, slice(4, 8))
    assert gathered
    monkeypatch.setattr(module, "gather_rows", join)
    assert half(alone, slice(0, 4)) != pytest.approx(whole)
    assert half(case, slice(0, 4)) == pytest.approx(whole, rel=1e-12)
    assert not gathered


HELD = """
ab margin: test_ab.py test_the_margin_is_in_the_square
at p: test_at.py test_an_attention_of_third_powers_by_hand
bce_loss T, batch_mean, from_logits: test_numbers.py test_bce
cat_kd resolution, normalize: test_cat_kd.py test_maps_pooled_to_one_cell_by_hand
cc feat_dim: test_cc.py test_as_many_numbers_as_feat_dim_are_compared
ce_loss T: test_numbers.py test_ce
cosine cosine_weight, smooth_l1_weight: test_cosine.py test_tokens_by_hand
cosine beta: test_cosine.py test_where_the_smooth_l1_turns_linear
cosine per: test_cosine.py test_the_cosine_of_a_whole_sample
cosine batch_mean: test_cosine.py test_sums_over_positions_are_divided_by_the_batch
crd feat_dim, K, T: test_crd.py test_it_is_the_noise_contrastive_estimate_both_ways
crd momentum: test_crd.py test_the_rows_of_the_batch_move_in_training_alone
crd negatives: test_crd.py test_negatives_of_all_classes_are_drawn_as_they_were_before_there_was_a_choice
cwd T: test_cwd.py test_a_number_by_hand
dist beta, gamma, T: test_numbers.py test_dist_at_a_temperature
dkd alpha, beta, T: test_numbers.py test_dkd
dkd warmup_epochs: test_numbers.py test_dkd_grows_over_the_epochs
fgd T, alpha, beta, gamma, relation: test_fgd.py test_each_part_by_hand
fitnet relu: test_fitnet.py test_without_relu_negative_hints_can_be_met
ft k, p1, p2, translator_bn, paraphraser_bn: test_ft.py test_factors_of_other_powers_by_hand
ft_paraphrase k, use_bn: test_ft.py test_a_paraphraser_with_batch_norms
gkd_loss T: test_numbers.py test_gkd_takes_only_rows_where_the_teacher_is_right
itrd alpha: test_itrd.py test_the_correlation_term_uses_the_correlation_of_each_channel
itrd correlation_weight, mutual_weight: test_itrd.py test_the_mutual_term_by_hand
kd_loss T: test_numbers.py test_kd
kl_loss norm: test_numbers.py test_kl
l2_loss feat_norm, batch_mean: test_numbers.py test_l2
mgd mask, mask_ratio: test_mgd.py test_whole_channels_or_positions_are_lost
mlkd temperatures: test_numbers.py test_mlkd
mlkd standardize: test_numbers.py test_mlkd_standardizes_for_kl_alone
nkd gamma, T: test_numbers.py test_nkd
ofd kernel_size: test_ofd.py test_a_wider_connector_by_hand
pkd resize_student: test_pkd.py test_scale_and_shift_change_nothing_and_sizes_may_differ
pkt eps: test_pkt.py test_eps_is_in_lengths_and_logarithm
review warmup_epochs: test_review.py test_it_grows_over_as_many_epochs_as_the_spec_says
review max_mid_channel: test_review.py test_the_middle_width_has_a_limit
rkd distance_weight: test_rkd.py test_a_number_by_hand
rkd angle_weight: test_rkd.py test_angles_are_those_of_triples
rkd squared, eps: test_rkd.py test_squared_distances_and_their_floor_by_hand
rld alpha, beta, T, alpha_T: test_numbers.py test_rld_at_other_temperatures
rld warmup_epochs: test_numbers.py test_rld_grows_over_the_epochs
simkd factor: test_simkd.py test_the_factor_narrows_the_projector
srd alpha, beta: test_srd.py test_both_parts_are_weighed
srd T: test_srd.py test_temperature_scales_the_divergence_and_one_row_is_refused
srrl alpha, beta: test_srrl.py test_it_matches_vectors_and_what_the_teacher_makes_of_them
tfkd_reg T, correct_probability, multiplier: test_numbers.py test_tfkd_reg_by_hand
tfkd_self T, multiplier: test_numbers.py test_tfkd
ttm gamma: test_numbers.py test_ttm
uskd alpha, beta, mu: test_numbers.py test_uskd
vid init_pred_var: test_vid.py test_the_variance_begins_where_it_is_told
vid eps: test_vid.py test_the_floor_of_the_variance_by_hand
wkd_f mean_cov_ratio, hidden, eps: test_wkd_f.py test_it_is_the_distance_of_means_and_deviations
wkd_f grid: test_wkd_f.py test_the_cells_of_a_grid_are_those_of_adaptive_pooling
wkd_f projector: test_wkd_f.py test_unlike_sizes_take_the_other_projector_and_single_positions_are_refused
wkd_l T, gamma: test_wkd_l.py test_the_transport_between_two_other_classes_by_hand
wkd_l sinkhorn_lambda, iterations: test_wkd_l.py test_it_is_sinkhorn_over_the_classes_beside_the_label
wkd_l sharpen: test_wkd_l.py test_what_a_distance_costs_by_hand
wkd_l max_per_class: test_wkd_l.py test_a_class_is_judged_by_its_first_samples
wsld T: test_numbers.py test_wsld
wttm gamma: test_numbers.py test_ttm
"""
"""Where the number of each argument is; `gather` is held by the test above."""


def held() -> Iterator[tuple[str, str, str, str]]:
    """Loss, argument, file and test of each line."""
    for line in HELD.strip().splitlines():
        what, _, where = line.partition(": ")
        name, _, options = what.partition(" ")
        file, test = where.split()
        for option in options.split(", "):
            yield name, option, file, test


def test_every_argument_has_a_number_in_a_test() -> None:
    assert sorted((name, option) for name, option, *_ in held()) == sorted(
        pair for pair in ARGUMENTS if pair[1] != "gather"
    )
    bodies: dict[str, dict[str, str]] = {}
    for name, option, file, test in held():
        source = (Path(__file__).with_name(file)).read_text(encoding="utf-8")
        if file not in bodies:
            functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
            bodies[file] = {node.name: ast.get_source_segment(source, node) or "" for node in functions}
        assert test in bodies[file], f"{name} {option}: {file} has no {test}"
        # The argument is given in the test, or in the helper of its file that makes the loss.
        given = [text for made, text in bodies[file].items() if made == test or not made.startswith("test_")]
        assert any(f"{option}=" in text or f'"{option}":' in text for text in given), (
            f"{name} {option}: {test}"
        )


def test_the_arguments_of_a_stateful_loss_are_those_of_its_init() -> None:
    for name in LOSSES:
        target = LOSSES[name].load()
        if inspect.isclass(target):
            assert issubclass(target, nn.Module) and not keyword_only(target.forward), name
            assert "self" not in positional(target)
