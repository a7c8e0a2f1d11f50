"""A student as one function from images to logits, without anything that serves training alone."""

from __future__ import annotations

from torch import Tensor, nn

from kdcli.distill.deployed import DeployedStudent
from kdcli.models.network import Network


class Portable(nn.Module):
    """forward(image [B, C, H, W], normalised as in training) -> logits [B, K]. Takes the network over."""

    def __init__(self, net: Network | DeployedStudent) -> None:
        super().__init__()
        if isinstance(net, Network):
            for name in net.training_only():
                delattr(net, name)
        self.net = net
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        logits = self.net({"image": image})["logits"]
        assert isinstance(logits, Tensor)
        return logits
