"""The files behind a spec: whether data exists and weights fit; nothing is loaded to a device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from kdcli.data.check import Look
from kdcli.data.check import check_files as check_data_files
from kdcli.data.check_images import Progress
from kdcli.data.facts import DataFacts
from kdcli.data.sources import SampleSource
from kdcli.errors import Diagnostic, Findings, KdError, SpecPath
from kdcli.models.network import Network
from kdcli.models.weights import check_weights as check
from kdcli.models.weights import find_file
from kdcli.spec.places import Places
from kdcli.spec.schema import Spec
from kdcli.training.build import teacher_settings, weight_path
from kdcli.training.sides import Sides


def check_data(sides: Sides, *, look: Look = "whole", progress: Progress | None = None) -> list[Diagnostic]:
    """Findings and facts of both sides' data files. look, told: as in kdcli.data.check."""
    found: list[Diagnostic] = []
    for train in (True, False):
        found += check_data_files(
            sides.part(train),
            ("dataset", "train" if train else "test"),
            partial(sides.source, train),
            partial(sides.opened, train),
            look=look,
            progress=progress,
        )
    found += sides.task.agree(sides.spec, _facts(sides, True), _facts(sides, False), sides.places)
    # The test side asks for what the training side's file says too.
    return list({(one.code, one.message, one.path): one for one in found}.values())


def _facts(sides: Sides, train: bool) -> DataFacts | None:
    """Facts from one side's own file; None where it can't be read, or images come without one."""
    try:
        source = sides.source(train)
    except KdError:
        return None
    return source.facts if isinstance(source, SampleSource) else None


def check_weights(spec: Spec, nets: Mapping[str, Network], places: Places, found: Findings) -> None:
    """Compare names and shapes in the headers of the weight files with the networks.

    nets: `net` and the teachers, by name. KD618 where a teacher's list lacks modules of its file.
    """
    for name, net in nets.items():
        if name == "net":
            if spec.saver.pretrain_model is not None:
                with found.part():
                    where: SpecPath = ("saver", "pretrain_model")
                    path = find_file(spec.saver.pretrain_model, places, where)
                    check(net, path, where=where, mode="pretrain")
            continue
        weight = teacher_settings(spec, name).teacher_weight
        if weight is not None:
            with found.part():
                where = weight_path(spec, name)
                for notice in check(net, find_file(weight, places, where), where=where):
                    message = f"{name}: {notice}"
                    unused = Diagnostic(code="KD618", severity="warning", message=message, path=where)
                    found.found.append(unused)
