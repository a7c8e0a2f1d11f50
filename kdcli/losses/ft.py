"""Factor transfer: the teacher's feature paraphrased, the student's translated into the same factors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.inputs import full_precision, only_maps, same_size
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count, Positive


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map: `encoder` gives [B, k·C, H, W], `decoder` goes back."""

    def __init__(self, channels: int, *, k: float, use_bn: bool) -> None:
        super().__init__()
        factors = int(channels * k)
        self.encoder = _encoder(channels, factors, use_bn)
        self.decoder = nn.Sequential(
            *_block(nn.ConvTranspose2d(factors, factors, 3, 1, 1), factors, use_bn),
            *_block(nn.ConvTranspose2d(factors, channels, 3, 1, 1), channels, use_bn),
            *_block(nn.ConvTranspose2d(channels, channels, 3, 1, 1), channels, use_bn),
        )

    def forward(self, teacher: Tensor) -> Tensor:
        """The teacher's map, reconstructed."""
        reconstructed: Tensor = self.decoder(self.encoder(teacher))
        return reconstructed


class Translator(nn.Module):
    """The student's map to factors: `encoder` gives [B, factors, H, W]."""

    def __init__(self, channels: int, factors: int, *, use_bn: bool) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factors, use_bn)

    def forward(self, student: Tensor) -> Tensor:
        """The student's factors."""
        translated: Tensor = self.encoder(student)
        return translated


class FactorParaphrase(StatefulLoss):
    """Mean squared error of the teacher's map reconstructed by a paraphraser: stage one of `ft` (FT).

    Trains the paraphraser alone; no student takes part. A later `ft` on the same teacher layer takes the
    paraphraser over.
    Taps: the last map before pooling.
    Source: "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv:1802.04977.
    """

    def __init__(
        self,
        teacher_shape: Sequence[int],
        *,
        k: Positive = 0.5,
        use_bn: bool = False,
    ) -> None:
        super().__init__()
        self.paraphraser = Paraphraser(only_maps(teacher_shape, "ft_paraphrase")[1], k=k, use_bn=use_bn)

    @full_precision
    def forward(self, teacher: Tensor) -> Tensor:
        """A scalar, averaged over all elements."""
        return F.mse_loss(self.paraphraser(teacher), teacher)


class FactorTransfer(StatefulLoss):
    """Distance of the student's translated factors to the teacher's paraphrased ones (FT).

    A factor is the mean over channels of x**p1, flattened and divided by its row's L2 norm; the distance
    is |difference|**p2, averaged over batch and positions. The translator is trained; the paraphraser is
    frozen, in evaluation mode, and comes from an earlier stage with `ft_paraphrase` (see `inherit`).
    Maps [B, C, H, W]; the larger factor map is averaged down to the smaller.
    Taps: the last map before pooling.
    Source: "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv:1802.04977.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        k: Positive = 0.5,
        p1: Count = 2,
        p2: Count = 1,
        translator_bn: bool = True,
        paraphraser_bn: bool = False,
    ) -> None:
        super().__init__()
        self.p1, self.p2 = p1, p2
        channels = only_maps(teacher_shape, "ft")[1]
        self.translator = Translator(
            only_maps(student_shape, "ft")[1], int(channels * k), use_bn=translator_bn
        )
        self.paraphraser = Paraphraser(channels, k=k, use_bn=paraphraser_bn)
        self.paraphraser.requires_grad_(False).eval()

    def inherit(self, earlier: Iterable[nn.Module]) -> bool:
        """Take over the paraphraser of the last earlier loss whose paraphraser has this one's shapes.

        earlier: the losses of the stages before, in order. Returns whether one was found; without one
        the paraphraser stays as it was made, at random.
        """
        own_shapes = {name: value.shape for name, value in self.paraphraser.state_dict().items()}
        found = False
        for loss in earlier:
            if isinstance(loss, FactorParaphrase):
                earlier_state = loss.paraphraser.state_dict()
                if {name: value.shape for name, value in earlier_state.items()} == own_shapes:
                    self.paraphraser.load_state_dict(earlier_state)
                    found = True
        return found

    def train(self, mode: bool = True) -> Self:
        """The paraphraser stays in evaluation mode."""
        super().train(mode)
        self.paraphraser.eval()
        return self

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar."""
        with torch.no_grad():
            target = self.paraphraser.encoder(teacher)
        translated, target = same_size(self.translator(student), target)
        factor, target = normalized(self._factor(translated), self._factor(target), power=self.p1)
        distance = (factor - target).abs()
        return (distance if self.p2 == 1 else distance.pow(self.p2)).mean()

    def _factor(self, x: Tensor) -> Tensor:
        return x.pow(self.p1).mean(1).flatten(1)


def _encoder(channels: int, factors: int, use_bn: bool) -> nn.Sequential:
    return nn.Sequential(
        *_block(nn.Conv2d(channels, channels, 3, 1, 1), channels, use_bn),
        *_block(nn.Conv2d(channels, factors, 3, 1, 1), factors, use_bn),
        *_block(nn.Conv2d(factors, factors, 3, 1, 1), factors, use_bn),
    )


def _block(conv: nn.Module, channels: int, use_bn: bool) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(channels) if use_bn else nn.Identity(), nn.LeakyReLU(0.1)]
