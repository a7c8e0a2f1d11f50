"""A student as one function from images to logits, without anything that serves training alone."""

from __future__ import annotations

import torch
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
        else:
            # Exporters can't leave a module midway; what comes after the tap is dead code to them.
            net.taps.require([net.tap], None)
        self.net = net
        self.eval()

    def warm_up(self, images: Tensor) -> Portable:
        """Run once, so that a student with another end knows its tap; returns itself."""
        with torch.no_grad():
            self(images)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        logits = self.net({"image": image})["logits"]
        assert isinstance(logits, Tensor)
        return logits
