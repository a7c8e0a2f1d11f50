"""Adapters: a student feature in the teacher's shape, or a clear refusal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.distill.adapters import AutoAdapter, ConvAdapter, build_adapter, unjoinable
from kdcli.errors import SpecError
from kdcli.spec.schema import AdapterSpec

sizes = st.integers(1, 6)
maps = st.tuples(st.just(2), sizes, sizes, sizes)
tokens = st.tuples(st.just(2), sizes, sizes)
vectors = st.tuples(st.just(2), sizes)


@settings(max_examples=60, deadline=None)
@given(st.one_of(maps, tokens, vectors), st.one_of(maps, tokens, vectors))
def test_auto_joins_what_has_the_same_places_and_refuses_the_rest(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    joins = {(4, 4), (4, 2), (3, 2), (2, 2)} | ({(3, 3)} if student[1] == teacher[1] else set())
    single = {2: True, 3: teacher[1] == 1, 4: teacher[2:] == (1, 1)}[len(teacher)]
    if (len(student), len(teacher)) not in joins and not single:
        assert unjoinable(student, teacher) is not None
        with pytest.raises(SpecError, match="KD426"):
            build_adapter(AdapterSpec(type="auto"), student, teacher, ())
        return
    assert unjoinable(student, teacher) is None
    adapter = build_adapter(AdapterSpec(type="auto"), student, teacher, ()).eval()
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
