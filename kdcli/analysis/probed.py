"""What a spec's probe finds of networks that `kdcli eval` measures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcli.distill.trainee import DeployedStudent
from kdcli.models.weights import weights_hash
from kdcli.parallel.distributed import Processes
from kdcli.records import Notice
from kdcli.tasks.probe.probe import ProbedNetwork
from kdcli.training.sides import Sides


def probe_figures(
    sides: Sides,
    networks: Iterable[tuple[str, nn.Module, Any]],
    processes: Processes,
    cast: torch.autocast | None,
    root: Path,
) -> tuple[dict[str, dict[str, float]], list[Notice]]:
    """The figures of each network by name, and notices; empty without a probe. The first process computes.

    networks: names, the networks in evaluation mode on their device, and the change from the student's pixels to their
    own. cast: their precision. root: the run's folder: what it keeps of its teachers' features is read there.
    """
    figures: dict[str, dict[str, float]] = {}
    notices: list[Notice] = []
    if processes.speaks and sides.spec.dataset.probe is not None:
        probe, findings = sides.build_probe(processes.device, root)
        assert probe is not None
        notices += [Notice(message=finding.message, level="warning") for finding in findings]
        for name, whole, pixels in networks:
            # The student as it was trained, also where a method gives it another end.
            net = whole.taps.net.eval() if isinstance(whole, DeployedStudent) else whole
            frozen = None if name == "student" else weights_hash(net.state_dict())
            network = ProbedNetwork(name=name, net=net, pixels=pixels, autocast=cast, weights=frozen)
            found = probe.measure(network, keep=False)
            assert found is not None
            notices += [Notice(message=message, level="warning") for message in found.messages]
            notices.append(Notice(message=f"the probe of {network.called} reads {found.feature}"))
            figures[name] = found.metrics
        probe.close()
    shared: tuple[dict[str, dict[str, float]], list[Notice]] = processes.broadcast((figures, notices))
    return shared
