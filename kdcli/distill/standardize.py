"""Features of unlike teachers brought to one scale, by what each teacher shows of the first training images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdcli.losses.parts.inputs import full_precision
from kdcli.losses.parts.reduce import distributed
from kdcli.spec.tables import Standardization


class Standardizer(nn.Module):
    """One layer of one teacher: its features with mean 0 and one spread, ((x − mean) / std) · rotationᵀ by position.

    how: `mean_std` takes mean and standard deviation of each channel, `global` one mean and one deviation of all
    values; `phi_s` (PCA-Hadamard) takes the mean of each channel and one deviation, and rotates, so that each channel
    has variance 1 and no distance changes but by that one factor. Statistics are over images and positions
    (÷ their number). A channel that never changes is divided by 1.
    They come from the first `images` training images, not augmented, or the batches that hold these; they are buffers,
    and the checkpoint's count. Until they are there (the checks before training) the mean and the one deviation of the
    batch at hand stand in for them.
    Source: "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation", arXiv:2410.01680.
    """

    mean: Tensor
    std: Tensor
    rotation: Tensor
    ready: Tensor

    def __init__(self, teacher_shape: Sequence[int], how: Standardization, images: int) -> None:
        super().__init__()
        self.how, self.images = how, images
        channels = teacher_shape[2] if len(teacher_shape) == 3 else teacher_shape[1]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        if how == "phi_s":
            self.register_buffer("rotation", torch.eye(channels))
        self.is_ready = False
        self.seen = 0
        self.sums: list[Tensor] = []

    @full_precision
    def forward(self, teacher: Tensor) -> Tensor:
        """The features of one batch, maps [B, C, H, W], tokens [B, N, D] or vectors [B, D], standardised."""
        x = _channels_last(teacher)
        if not self.is_ready:
            centred = x - x.flatten(0, -2).mean(0)
            spread = centred.square().mean().sqrt()
            return _as_it_was(centred / torch.where(spread == 0, torch.ones_like(spread), spread))
        x = (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)
        return _as_it_was(x @ self.rotation.to(x.dtype).T if self.how == "phi_s" else x)

    def invert(self, features: Tensor) -> Tensor:
        """The teacher's features of standardised ones: what `forward` undoes."""
        x = _channels_last(features)
        x = x @ self.rotation.to(x.dtype) if self.how == "phi_s" else x
        return _as_it_was(x * self.std.to(x.dtype) + self.mean.to(x.dtype))

    @torch.no_grad()
    def prepare(self, teacher: Tensor) -> None:
        """Add one batch to the sums, unless the batches so far hold as many images as are asked for.

        The batches of all processes are one; they are of one size.
        """
        if self.seen >= self.images:
            return
        self.seen += len(teacher) * (dist.get_world_size() if distributed() else 1)
        x = _channels_last(teacher.detach()).flatten(0, -2).double()
        products = x.T @ x if self.how == "phi_s" else x.square().sum(0)
        sums = [x.new_full((), len(x)), x.sum(0), products]
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums

    @torch.no_grad()
    def prepared(self) -> None:
        """Make mean, deviation and rotation of the sums of all processes."""
        sums, self.sums, self.seen = self.sums, [], 0
        if distributed():
            for value in sums:
                dist.all_reduce(value)
        count, total, products = sums
        mean, rotation = total / count, None
        if self.how == "phi_s":
            covariance = products / count - mean[:, None] * mean[None, :]
            variance = covariance.diagonal().clamp(min=0).mean().expand_as(mean)
            rotation = even_rotation(covariance)
        elif self.how == "global":
            square = products.mean() / count
            mean = mean.mean().expand_as(mean)
            variance = (square - mean.square()).clamp(min=0)
        else:
            variance = (products / count - mean.square()).clamp(min=0)
        # What rounding leaves of the squares of a constant is no deviation.
        constant = variance <= 1e-12 * mean.square() + torch.finfo(mean.dtype).tiny
        self.mean.copy_(mean)
        self.std.copy_(torch.where(constant, torch.ones_like(variance), variance.sqrt()))
        if rotation is not None:
            self.rotation.copy_(rotation)
        if distributed():
            for buffer in (self.mean, self.std, *([self.rotation] if rotation is not None else [])):
                dist.broadcast(buffer, 0)
        self.ready.fill_(True)
        self.is_ready = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_ready = self.is_ready or bool(state_dict.get(f"{prefix}ready", False))


def even_rotation(covariance: Tensor) -> Tensor:
    """A rotation [D, D] after which each channel has the mean of the variances: the principal axes, evenly mixed.

    By a Hadamard matrix, each entry ±1/√D, where one of this size can be made; else by D − 1 rotations in a plane, each
    of which brings one more channel to the mean variance (the authors then take a random matrix, which comes near it).
    """
    values, vectors = torch.linalg.eigh(covariance)
    # An axis has no direction of its own: its largest entry is positive.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -torch.ones_like(largest), torch.ones_like(largest))
    signs = hadamard(len(values))
    if signs is not None:
        mixing = signs.to(values) / math.sqrt(len(values))
    else:
        mixing = _levelled(values.clamp(min=0))
    rotation: Tensor = mixing @ vectors.T
    return rotation


def hadamard(size: int) -> Tensor | None:
    """A Hadamard matrix [size, size] of ±1 in float64, by Sylvester and Paley; None where their constructions fail."""
    doubled = 1
    while size % doubled == 0:
        small = _paley(size // doubled)
        if small is not None:
            while len(small) < size:
                small = torch.cat((torch.cat((small, small), 1), torch.cat((small, -small), 1)))
            return small
        doubled *= 2
    return None


def _paley(size: int) -> Tensor | None:
    """A Hadamard matrix of size 1, q + 1 (q a prime, 3 modulo 4) or 2(q + 1) (q a prime, 1 modulo 4)."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _is_prime(size - 1) and (size - 1) % 4 == 3:
        q = size - 1
        matrix = torch.ones(size, size, dtype=torch.float64)
        matrix[1:, 0] = -1
        matrix[1:, 1:] = _residues(q) + torch.eye(q, dtype=torch.float64)
        return matrix
    q = size // 2 - 1
    if size % 2 == 0 and _is_prime(q) and q % 4 == 1:
        inner = torch.ones(q + 1, q + 1, dtype=torch.float64)
        inner[0, 0] = 0
        inner[1:, 1:] = _residues(q)
        entry, diagonal = (
            torch.tensor(rows, dtype=torch.float64) for rows in ([[1, 1], [1, -1]], [[1, -1], [-1, -1]])
        )
        return torch.kron(inner, entry) + torch.kron(torch.eye(q + 1, dtype=torch.float64), diagonal)
    return None


def _residues(q: int) -> Tensor:
    """[q, q]: 1 where row − column is a square modulo the prime q, 0 where it is 0, else −1."""
    kind = torch.full((q,), -1.0, dtype=torch.float64)
    kind[torch.arange(1, q).square() % q] = 1
    kind[0] = 0
    places = torch.arange(q)
    return kind[(places[:, None] - places[None, :]) % q]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _levelled(variances: Tensor) -> Tensor:
    """A rotation [D, D] that brings independent channels of these variances to their mean, one by one."""
    matrix = torch.diag(variances).cpu()
    rotation = torch.eye(len(matrix), dtype=matrix.dtype)
    mean = float(variances.mean())
    left = list(range(len(matrix)))
    while len(left) > 1:
        diagonal = matrix.diagonal()[left]
        low, high = left[int(diagonal.argmin())], left[int(diagonal.argmax())]
        below, above = mean - float(matrix[low, low]), float(matrix[high, high]) - mean
        if below <= 0 or above <= 0:
            break
        beside = float(matrix[low, high])
        tangent = (math.sqrt(beside * beside + below * above) - beside) / above
        cosine = 1 / math.sqrt(1 + tangent * tangent)
        plane = torch.tensor([[cosine, tangent * cosine], [-tangent * cosine, cosine]], dtype=matrix.dtype)
        both = [low, high]
        matrix[both] = plane @ matrix[both]
        matrix[:, both] = matrix[:, both] @ plane.T
        rotation[both] = plane @ rotation[both]
        left.remove(low)
    return rotation.to(variances)


def _channels_last(feature: Tensor) -> Tensor:
    return feature.movedim(1, -1) if feature.dim() == 4 else feature


def _as_it_was(feature: Tensor) -> Tensor:
    return feature.movedim(-1, 1) if feature.dim() == 4 else feature
