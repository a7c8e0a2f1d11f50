"""Neuron selectivity transfer."""

from __future__ import annotations

import itertools

import torch

from kdcli.losses.nst import neuron_selectivity


def test_it_is_the_maximum_mean_discrepancy_of_the_channels() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 4, 2, 2).double()
    total = 0.0
    for s, t in zip(student.flatten(2), teacher.flatten(2), strict=True):
        s, t = ([(row / row.norm()).tolist() for row in x] for x in (s, t))
        for sign, first, second in ((1, s, s), (1, t, t), (-2, s, t)):
            kernel = [
                sum(a * b for a, b in zip(x, y, strict=True)) ** 2
                for x, y in itertools.product(first, second)
            ]
            total += sign * sum(kernel) / len(kernel) / 2
    torch.testing.assert_close(neuron_selectivity(student, teacher).item(), total)


def test_the_order_and_scale_of_channels_do_not_matter() -> None:
    teacher = torch.randn(2, 4, 3, 3).double()
    assert neuron_selectivity(3 * teacher.flip(1), teacher).abs() < 1e-12
