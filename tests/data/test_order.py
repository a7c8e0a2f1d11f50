"""Which samples each process sees."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdcli.data.order import AspectGroups, Dist, Local

sizes = st.integers(1, 60)
batches = st.integers(1, 9)
worlds = st.integers(1, 5)


def ranks(kind: type[Dist], total: int, batch: int, world: int, train: bool, **more: object) -> list[Dist]:
    return [kind(total, batch, train, 7, rank, world, **more) for rank in range(world)]  # type: ignore[arg-type]


@given(sizes, batches, worlds, st.integers(0, 3))
def test_training_sees_every_sample_and_ranks_keep_in_step(
    n: int, batch: int, world: int, epoch: int
) -> None:
    per_rank = [order.batches(epoch) for order in ranks(Dist, n, batch, world, True)]
    lengths = [[len(b) for b in batches] for batches in per_rank]
    assert all(length == lengths[0] for length in lengths)
    seen = np.concatenate([b for batches in per_rank for b in batches])
    assert set(seen) == set(range(n)) and len(seen) == -(-n // world) * world
    assert all(1 <= size <= batch for size in lengths[0]) and all(size == batch for size in lengths[0][:-1])


@given(sizes, batches, worlds)
def test_ranks_together_make_the_global_batches_of_one_process(n: int, batch: int, world: int) -> None:
    n = -(-n // world) * world
    alone = Dist(n, batch * world, True, 7).batches(2)
    shared = [order.batches(2) for order in ranks(Dist, n, batch, world, True)]
    assert len(alone) == len(shared[0])
    for number, whole in enumerate(alone):
        assert np.array_equal(np.concatenate([batches[number] for batches in shared]), whole)


@given(sizes, batches, worlds)
def test_a_test_set_is_seen_once_in_order(n: int, batch: int, world: int) -> None:
    for kind in (Dist, Local):
        per_rank = [order.batches(0) for order in ranks(kind, n, batch, world, False)]
        seen = np.concatenate([b for batches in per_rank for b in batches])
        assert sorted(seen) == list(range(n))
    assert np.array_equal(np.concatenate(Dist(n, batch, False, 7).batches(0)), np.arange(n))


@given(sizes, batches, worlds)
def test_drop_last_leaves_whole_batches_only(n: int, batch: int, world: int) -> None:
    for order in ranks(Dist, n, batch, world, True, drop_last=True):
        kept = order.batches(0)
        assert all(len(b) == batch for b in kept) and len(kept) == -(-n // world) * world // (batch * world)


def test_local_ranks_see_all_in_orders_of_their_own() -> None:
    first, second = (np.concatenate(order.batches(0)) for order in ranks(Local, 50, 8, 2, True))
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)


def test_order_changes_with_epoch_and_seed_and_repeats() -> None:
    order = Dist(100, 10, True, 1)
    flat = [np.concatenate(order.batches(epoch)) for epoch in (0, 1, 0)]
    assert np.array_equal(flat[0], flat[2]) and not np.array_equal(flat[0], flat[1])
    assert not np.array_equal(flat[0], np.concatenate(Dist(100, 10, True, 2).batches(0)))


@given(st.lists(st.floats(0.2, 5), min_size=1, max_size=60), batches, worlds, st.booleans())
def test_aspect_groups(ratios: list[float], batch: int, world: int, train: bool) -> None:
    orders = [AspectGroups(ratios, [1.0], batch, train, 7, rank, world) for rank in range(world)]
    per_rank = [order.batches(3) for order in orders]
    seen = np.concatenate([b for batches in per_rank for b in batches])
    assert set(seen) == set(range(len(ratios)))
    for batches_of_rank in per_rank:
        for ids in batches_of_rank:
            assert len({ratios[i] > 1.0 for i in ids}) == 1
    if train:
        assert all([len(b) for b in batches] == [batch] * len(per_rank[0]) for batches in per_rank)
        assert len(per_rank[0]) == len(orders[0].batches(0))
    else:
        assert len(seen) == len(ratios)
