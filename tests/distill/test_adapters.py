"""Adapters: any student feature in the teacher's shape, or a clear refusal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.distill.adapters import ConvAdapter, build_adapter
from kdcli.errors import SpecError
from kdcli.spec.schema import AdapterSpec

sizes = st.integers(1, 6)
maps = st.tuples(st.just(2), sizes, sizes, sizes)
tokens = st.tuples(st.just(2), sizes, sizes)
vectors = st.tuples(st.just(2), sizes)


@settings(max_examples=60, deadline=None)
@given(st.one_of(maps, tokens, vectors), st.one_of(maps, tokens, vectors))
def test_auto_turns_every_layout_into_every_other(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    adapter = build_adapter(AdapterSpec(type="auto"), student, teacher, ()).eval()
    made = adapter(torch.randn(3, *student[1:]))
    assert made.shape == (3, *teacher[1:])


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
