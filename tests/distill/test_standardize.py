"""Features of unlike teachers on one scale: variances, distances and the way back."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from kdcli.distill.standardize import Standardizer, even_rotation, hadamard
from kdcli.distill.terms import Term
from kdcli.records import Notice, Step
from kdcli.training.train import train
from tests.distill.methods import mimic_of
from tests.distill.specs import TEACHER, spec_with
from tests.training.runs import run_of

How = Literal["mean_std", "global", "phi_s"]
HOWS: tuple[How, ...] = ("mean_std", "global", "phi_s")


def rows(width: int, count: int = 400, seed: int = 0) -> Tensor:
    """Correlated channels of very unlike variances and means, [count, width]."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(count, width, generator=draw, dtype=torch.float64) ** 3
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64)
    return values @ mix * torch.logspace(-2, 2, width, dtype=torch.float64) + 5 * torch.arange(width)


def fitted(how: How, *features: Tensor, images: int = 10**6) -> Standardizer:
    shape = features[0].shape
    made = Standardizer(shape, how, images).double()
    for feature in features:
        made.prepare(feature)
    made.prepared()
    return made


@pytest.mark.parametrize("width", [1, 2, 6, 7, 12, 16, 28, 92])
def test_after_phi_s_every_channel_has_variance_1_and_distances_one_factor(width: int) -> None:
    x = rows(width)
    made = fitted("phi_s", x[:150], x[150:])
    y = made(x)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(width, dtype=torch.float64))
    assert y.mean(0).abs().max() < 1e-9
    # The error of any prediction: that of the features divided by one number.
    other = rows(width, seed=1)
    factor = x.var(0, correction=0).mean().sqrt()
    torch.testing.assert_close((made(other) - y).norm(dim=1), (other - x).norm(dim=1) / factor)
    torch.testing.assert_close(made.rotation @ made.rotation.T, torch.eye(width, dtype=torch.float64))


def test_a_channel_of_its_own_and_all_values_by_hand() -> None:
    x = torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0], [7.0, 40.0]], dtype=torch.float64)
    by_channel = (x - torch.tensor([4.0, 25.0])) / torch.tensor([5.0**0.5, 15.0])
    torch.testing.assert_close(fitted("mean_std", x)(x), by_channel)
    # All eight: mean 14.5, mean of squares (84 + 3400) / 8.
    torch.testing.assert_close(fitted("global", x)(x), (x - 14.5) / (435.5 - 14.5**2) ** 0.5)


@pytest.mark.parametrize("how", HOWS)
def test_maps_tokens_and_vectors_are_standardised_by_channel_and_turned_back(how: How) -> None:
    x = rows(6, 48)
    of_map = x.reshape(4, 3, 4, 6).permute(0, 3, 1, 2)
    of_tokens = x.reshape(4, 12, 6)
    expected = fitted(how, x)(x)
    for feature in (of_map, of_tokens):
        made = fitted(how, feature)
        y = made(feature)
        assert y.shape == feature.shape
        last = y.permute(0, 2, 3, 1) if y.dim() == 4 else y
        torch.testing.assert_close(last.reshape(48, 6), expected)
        torch.testing.assert_close(made.invert(y), feature)


@pytest.mark.parametrize("how", HOWS)
def test_a_channel_that_never_changes_stays_at_zero(how: How) -> None:
    x = torch.full((5, 4), 0.1, dtype=torch.float64)
    assert fitted(how, x)(x).abs().max() < 1e-12


def test_the_first_images_count_and_whole_batches_of_them() -> None:
    x = rows(4, 60)
    made = fitted("mean_std", x[:20], x[20:40], x[40:], images=21)
    torch.testing.assert_close(made.mean, x[:40].mean(0))


@pytest.mark.parametrize("how", HOWS)
def test_before_there_are_statistics_the_batch_has_one_spread_as_a_whole(how: How) -> None:
    x = rows(4, 60).requires_grad_()
    y = Standardizer(x.shape, how, 8).double()(x)
    assert float(y.square().mean()) == pytest.approx(1) and y.mean(0).abs().max() < 1e-9
    assert not y.requires_grad


def test_a_checkpoint_has_the_statistics_and_that_they_are_there() -> None:
    x = rows(6)
    made = fitted("phi_s", x)
    other = Standardizer(x.shape, "phi_s", 8).double()
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))
    unready = Standardizer(x.shape, "phi_s", 8)
    unready.load_state_dict(Standardizer(x.shape, "phi_s", 8).state_dict())
    assert not unready.is_ready


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 28, 36, 60, 96])
def test_a_hadamard_matrix_has_entries_of_1_and_rows_at_right_angles(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None and torch.equal(matrix.abs(), torch.ones_like(matrix))
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 6, 10, 92])
def test_where_there_is_no_hadamard_matrix_the_variances_are_levelled_all_the_same(size: int) -> None:
    assert hadamard(size) is None
    covariance = rows(size).T.cov()
    rotation = even_rotation(covariance)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64))
    variances = (rotation @ covariance @ rotation.T).diagonal()
    torch.testing.assert_close(variances, variances.mean().expand(size))


def test_rounding_turns_no_axis_round() -> None:
    covariance = rows(12).T.cov()
    torch.testing.assert_close(even_rotation(covariance * (1 + 1e-12)), even_rotation(covariance))


@pytest.mark.parametrize("images", [8, 1024])
def test_a_run_takes_the_statistics_of_so_many_images_before_it_trains(images: int) -> None:
    mimic = {**mimic_of("cosine", TEACHER), "standardize": "mean_std", "standardize_images": images}
    with run_of(spec_with(mimic)) as run:
        (term,) = (t for t in run.trainee.modules() if isinstance(t, Term))
        assert term.teacher_shown(0).endswith("(mean_std)")
        loader = run.unaugmented()
        assert loader is not None
        batches = [dict(batch) for batch in loader.batches(0)]
        shown = batches[: images // 8]
        (side,) = (pair.teacher for pair in term.pairs)
        assert side is not None
        features = torch.cat([side.of(run.teachers["teacher0"].view(batch)) for batch in shown])
        messages = []
        for record in train(run):
            messages += [record.message] if isinstance(record, Notice) else []
            if isinstance(record, Step):
                break
        (made,) = term.standardizers
    (what,) = (message for message in messages if "with the transforms of the test data" in message)
    assert what.startswith("8 images" if images == 8 else "one pass")
    torch.testing.assert_close(made.mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(made.std, features.std((0, 2, 3), correction=0))
