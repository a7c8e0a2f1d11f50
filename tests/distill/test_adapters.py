"""Adapters: a student feature in the teacher's shape, or a clear refusal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.distill.adapters import AutoAdapter, ConvAdapter, MlpAdapter, build_adapter, unjoinable
from kdcli.errors import SpecError
from kdcli.spec.schema import AdapterSpec

sizes = st.integers(1, 6)
maps = st.tuples(st.just(2), sizes, sizes, sizes)
tokens = st.tuples(st.just(2), sizes, sizes)
vectors = st.tuples(st.just(2), sizes)


@settings(max_examples=60, deadline=None)
@given(st.one_of(maps, tokens, vectors), st.one_of(maps, tokens, vectors), st.sampled_from(["auto", "mlp"]))
def test_what_has_the_same_places_is_joined_and_the_rest_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], kind: str
) -> None:
    joins = {(4, 4), (4, 2), (3, 2), (2, 2)} | ({(3, 3)} if student[1] == teacher[1] else set())
    single = {2: True, 3: teacher[1] == 1, 4: teacher[2:] == (1, 1)}[len(teacher)]
    if (len(student), len(teacher)) not in joins and not single:
        assert unjoinable(student, teacher) is not None
        with pytest.raises(SpecError, match="KD426"):
            build_adapter(AdapterSpec(type=kind), student, teacher, ())
        return
    assert unjoinable(student, teacher) is None
    adapter = build_adapter(AdapterSpec(type=kind), student, teacher, ()).eval()
    made = adapter(torch.randn(3, *student[1:]))
    assert made.shape == (3, *teacher[1:])


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4, 3, 5)])
def test_towards_a_vector_every_position_counts_alike(shape: tuple[int, ...]) -> None:
    adapter = build_adapter(AdapterSpec(type="auto"), shape, (2, 7), ()).eval()
    (weight, bias), feature = adapter.parameters(), torch.randn(shape)
    places = feature if len(shape) == 3 else feature.permute(0, 2, 3, 1).flatten(1, 2)
    mean = sum(places[:, index] for index in range(places.shape[1])) / places.shape[1]
    torch.testing.assert_close(adapter(feature), mean @ weight.T + bias)


def test_a_conv_adapter_is_trained_and_resizes_with_the_image() -> None:
    adapter = ConvAdapter((2, 3, 8, 8), (2, 5, 4, 4))
    assert sum(p.numel() for p in adapter.parameters()) == 3 * 5 + 2 * 5
    assert adapter(torch.randn(2, 3, 16, 16)).shape == (2, 5, 8, 8)


@pytest.mark.parametrize("kind", ["conv", "linear", "resize"])
def test_what_an_adapter_cannot_join_is_told_at_its_place(kind: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_adapter(AdapterSpec(type=kind), (2, 3, 4), (2, 7, 2, 2), ("mimic", "adapter"))
    assert caught.value.diagnostics[0].code == "KD432"
    assert caught.value.diagnostics[0].path == ("mimic", "adapter")
    assert "[B, 3, 4]" in str(caught.value)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 6), (2, 4, 1, 1)),
        ((2, 6), (2, 1, 4)),
        ((2, 1, 6), (2, 4, 1, 1)),
        ((2, 9, 6), (2, 4, 1, 1)),
        ((2, 6, 1, 1), (2, 1, 4)),
    ],
)
def test_what_has_a_single_place_is_as_good_as_a_vector(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    """A 1x1 map and one token: no place can be mixed up."""
    assert unjoinable(student, teacher) is None
    feature = torch.randn(student)
    adapter = AutoAdapter(student, teacher)
    made = adapter(feature)
    assert made.shape == teacher
    mean = feature.reshape(2, 6) if len(student) != 3 else feature.mean(1)
    assert torch.allclose(made.flatten(1), adapter.adapter.linear(mean))  # type: ignore[operator, union-attr]


def test_an_mlp_by_hand() -> None:
    """1 -> (1, −3) by the first layer, (1, −1) normalised, GELU, then their sum: 2·Φ(1) − 1."""
    adapter = MlpAdapter((2, 1), (2, 1), hidden=2)
    first, norm, _, last = adapter.layers
    assert [type(layer).__name__ for layer in adapter.layers] == ["Linear", "LayerNorm", "GELU", "Linear"]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-3.0]]))
        last.weight.fill_(1.0)
        for layer in (first, last):
            layer.bias.zero_()
        norm.eps = 0.0
        made = float(adapter(torch.ones(1, 1)))
    assert made == pytest.approx(2 * 0.8413447460685429 - 1, rel=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "widths", "what"),
    [
        ({}, [(3, 5), (5, 5)], "an MLP 3 to 5 to 5"),
        ({"hidden": 8, "depth": 3}, [(3, 8), (8, 8), (8, 5)], "an MLP 3 to 8 to 8 to 5"),
        ({"depth": 1}, [(3, 5)], "an MLP 3 to 5"),
    ],
)
def test_widths_and_depth_of_an_mlp(kwargs: dict[str, int], widths: list[tuple[int, int]], what: str) -> None:
    adapter = build_adapter(AdapterSpec(type="mlp", kwargs=kwargs), (2, 3, 4, 4), (2, 5, 4, 4), ())
    made = [(m.in_features, m.out_features) for m in adapter.modules() if isinstance(m, torch.nn.Linear)]
    assert made == widths and adapter.what == what
    assert not [m for m in adapter.modules() if "BatchNorm" in type(m).__name__]


def test_an_mlp_is_the_same_at_every_position_of_maps_tokens_and_vectors() -> None:
    torch.manual_seed(0)
    of_map, of_tokens, of_vector = (
        MlpAdapter(student, teacher)
        for student, teacher in (((2, 3, 2, 4), (2, 5, 2, 4)), ((2, 8, 3), (2, 8, 5)), ((2, 3), (2, 5)))
    )
    for adapter in (of_tokens, of_vector):
        adapter.load_state_dict(of_map.state_dict())
    feature = torch.randn(2, 3, 2, 4)
    flat = feature.flatten(2).transpose(1, 2)
    torch.testing.assert_close(of_map(feature).flatten(2).transpose(1, 2), of_tokens(flat))
    torch.testing.assert_close(of_map(feature)[:, :, 1, 2], of_vector(feature[:, :, 1, 2]))
    # A permutation of the places permutes what is made of them.
    order = torch.randperm(8)
    torch.testing.assert_close(of_tokens(flat[:, order]), of_tokens(flat)[:, order])


def test_an_mlp_resizes_a_map_first_and_averages_towards_a_vector() -> None:
    adapter = MlpAdapter((2, 3, 8, 8), (2, 5, 4, 4))
    feature = torch.randn(2, 3, 8, 8)
    equal = MlpAdapter((2, 3, 4, 4), (2, 5, 4, 4))
    equal.load_state_dict(adapter.state_dict())
    torch.testing.assert_close(adapter(feature), equal(torch.nn.functional.avg_pool2d(feature, 2)))
    assert adapter.what == "an MLP 3 to 5 to 5 after a resize 8x8 to 4x4"
    to_vector = MlpAdapter((2, 3, 8, 8), (2, 5))
    to_vector.load_state_dict(adapter.state_dict())
    torch.testing.assert_close(to_vector(feature), to_vector(feature.mean((2, 3))))
    assert to_vector.what == "an MLP 3 to 5 to 5 of the mean over positions"
