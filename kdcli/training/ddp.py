"""DDP or FSDP2 around the trainee of a run with several processes; nothing around it in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.distill.trainee import active_names
from kdcli.parallel.sharding import mesh_of, shard_network, shard_rest
from kdcli.training.guard import Reach
from kdcli.training.run import Run


class DistributedTrainee:
    """The trainee as the loop calls it, alone or on several processes.

    model: what is called. sharded: whether parameters are spread over the processes.
    """

    def __init__(self, run: Run, reach: Reach) -> None:
        self.run, self.reach = run, reach
        self.model: nn.Module = run.trainee
        self.sharded = run.spec.trainer.parallel == "fsdp" and run.processes.world_size > 1
        self._in_force: frozenset[str] | None = None
        if self.sharded:
            self._shard()

    def new_stage(self) -> None:
        """Forget which losses were active: other parameters train from the next step on."""
        self._in_force = None

    def follow(self, step_info: StepInfo, optimizer: torch.optim.Optimizer) -> None:
        """Share exactly the parameters that the active losses reach at this step.

        DDP waits for a gradient of each of its parameters, so those that no loss reaches at this step are
        frozen, and the wrapper is made anew where that set changes.
        """
        run = self.run
        if run.processes.world_size == 1:
            return
        in_force = active_names(run.trainee, step_info, self.reach)
        if in_force == self._in_force:
            return
        self._in_force = in_force
        reached = frozenset[str]().union(*(self.reach[name] for name in in_force))
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in run.trainee.named_parameters():
            parameter.requires_grad_(id(parameter) in trained and name in reached)
        if not self.sharded:
            optimizer.zero_grad(set_to_none=True)  # gradients are views into the old wrapper's buckets
            self.model = run.trainee
            self.model = self._ddp()

    def gradients(self, *, last: bool) -> AbstractContextManager[None]:
        """Accumulate gradients inside the block; processes share them at the last batch of a group alone."""
        return nullcontext() if self.run.processes.world_size == 1 else self._shared(last)

    @contextmanager
    def _shared(self, last: bool) -> Iterator[None]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
            return
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        yield
        if isinstance(self.model, DistributedDataParallel):
            # Else a process that skipped a block goes on alone, and its next message meets another's gradients.
            self.model._check_reducer_finalized()  # type: ignore[no-untyped-call]

    def _ddp(self) -> _Ddp:
        run = self.run
        # What a method keeps (CRD's bank) it keeps equal itself; rank 0's must not overwrite it.
        kept = [f"mimickers.{name}" for name, _ in run.trainee.mimickers.named_buffers()]
        _Ddp._set_params_and_buffers_to_ignore_for_model(run.trainee, kept)  # type: ignore[no-untyped-call]
        device = run.processes.device
        return _Ddp(
            run.trainee,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def _shard(self) -> None:
        run, mesh = self.run, mesh_of(self.run.processes)
        taps = run.trainee.taps
        shard_network(run.student, mesh, () if taps is None else [t.path for t in taps.taps.values()])
        shard_rest(run.trainee, mesh)
        for teacher in run.teachers.values():
            shard_network(teacher.net, mesh, [t.path for t in teacher.taps.taps.values()])


class _Ddp(DistributedDataParallel):
    """DistributedDataParallel without its refusal of synchronised BatchNorm on the CPU: kdcli's works there."""

    def _passing_sync_batchnorm_handle(self, module: nn.Module) -> None:
        if self.device_type != "cpu":
            super()._passing_sync_batchnorm_handle(module)  # type: ignore[no-untyped-call]
