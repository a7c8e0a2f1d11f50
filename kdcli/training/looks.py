"""What the watch looks at: weights before and after an update, outputs, the last feature, gradients of single losses.

Nothing is drawn at random and nothing is changed. What a look finds stays on the device until it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.taps import View, tensors_in
from kdcli.models.module import is_task_loss
from kdcli.parallel.settings import compiled_networks
from kdcli.parallel.sharding import local_part
from kdcli.training.run import Run


@dataclass
class Look:
    """One step that is looked at; its tensors stay on the device until they are read.

    moved, size: squared norms of the sampled weights' change, and of these weights before. spread: of the outputs.
    alive: 1 for each unit of the last feature that differs between the images. pulls: by loss, its squared gradient.
    """

    step: int
    stage_step: int
    lr: float
    moved: Tensor | None = None
    size: Tensor | None = None
    spread: Tensor | None = None
    alive: Tensor | None = None
    pulls: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookRead:
    """The numbers of a look, over all processes.

    change: the norm of the update over that of the weights, None where these are all zero. spread: of the outputs.
    pulls: by loss, the norm of its gradient. alive: above 0 for each unit of the last feature that differs by image.
    """

    change: float | None
    spread: float | None
    pulls: Mapping[str, float]
    alive: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class EvaluationLook:
    """Of a whole evaluation: the spread of the outputs, and which units of the last feature are alive."""

    spread: float
    alive: Sequence[float]


SAMPLED = 4096
"""Of each weight the first so many elements are compared before and after an update."""


def sampled(parameter: Tensor) -> Tensor:
    """The first elements [n] of a tensor, of a sharded one those of this process."""
    return local_part(parameter).reshape(-1)[:SAMPLED]


def sums_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Of each tensor the sum of its squares, float64 [number of tensors]."""
    return torch.stack(torch._foreach_norm(list(tensors))).double().square()


def spread_of(outputs: Tensor) -> Tensor:
    """How much outputs [B, K] differ between images: standard deviation over B, root mean square over K.

    What is the same for all K counts for nothing, as in a softmax. NaN for a single image.
    """
    if len(outputs) < 2:
        return outputs.new_full((), torch.nan, dtype=torch.float64)
    return _centred(outputs).var(0, correction=0).mean().sqrt()


def _centred(outputs: Tensor) -> Tensor:
    """Outputs [B, K] less what is the same for all K, float64 and without gradient."""
    values = outputs.detach().double()
    return values - values.mean(1, keepdim=True)


def differs(feature: Tensor) -> Tensor:
    """1.0 for each unit of a feature [B, C] that is not the same for all images; float64 [C]."""
    values = feature.detach().float()
    low, high = values.amin(0), values.amax(0)
    return (high - low > 1e-6 * torch.maximum(low.abs(), high.abs())).double()


class OutputsSeen:
    """The logits of a forward, and the input of the linear layer that makes them, seen in a `with` block.

    path: of that layer, None until it is found; missing: it has been looked for in vain.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.path: str | None = None
        self.missing = False
        self._passed: list[tuple[str, Any, Any]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the layer, or while it is not known on every linear one."""
        with ExitStack() as stack:
            for name, module in self.net.named_modules():
                if not self.missing and isinstance(module, nn.Linear) and self.path in (None, name):
                    stack.callback(module.register_forward_hook(self._note(name)).remove)
            yield
        self._passed = []

    def _note(self, name: str) -> Any:
        def note(_module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 2 and args:
                self._passed.append((name, args[0], output))

        return note

    def of(self, outputs: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """The logits [B, K] and the last feature [B, C] of a forward that has just ended; None where there is none."""
        passed, self._passed = self._passed, []
        logits = outputs.get("logits")
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            return None, None
        for name, feature, output in passed:
            if output is logits:
                self.path = name
                return logits, feature
        self.missing = self.path is None
        return logits, None


class Looks:
    """Looks at single steps of a run from inside the training loop, and at its evaluations.

    With a compiled student there is no last feature to look at, with FSDP no gradient of single losses. What is read
    of a look has the same length on all processes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.seen, self.measured = OutputsSeen(run.student), OutputsSeen(run.deployed)
        self.seen.missing = compiled_networks(run.spec.runtime) in (True, "student")
        self.gradients = not (run.spec.trainer.parallel == "fsdp" and run.processes.world_size > 1)
        self.parameters: Sequence[nn.Parameter] = ()
        self.waiting: list[Look] = []
        self.evaluated: EvaluationLook | None = None
        self._look: Look | None = None
        self._view: View | None = None
        self._hooks = ExitStack()
        self._before: list[Tensor] = []
        self._sizes: Tensor | None = None

    def begin(self, look: Look) -> None:
        """Look at the step that begins."""
        self._look = look
        self._hooks.enter_context(self.seen.watching())
        self.run.trainee.observer = self._observe

    def _observe(self, view: View) -> None:
        look, self._view = self._look, view
        logits, feature = self.seen.of(view.outputs)
        if look is None or logits is None:
            return
        look.spread = spread_of(logits)
        look.alive = None if feature is None or feature.ndim != 2 else differs(feature)

    def differentiate(self, losses: Mapping[str, Tensor]) -> None:
        """Look how hard each loss pulls at the last layer of the student that it reads, before the backward pass."""
        look, view, self._view = self._look, self._view, None
        if look is None or view is None or not self.gradients:
            return
        outputs = [value for name, value in view.outputs.items() if not is_task_loss(name)]
        candidates = {id(one): one for one in tensors_in([*view.features.values(), *outputs])}
        # What was made last comes first: between it and the loss lies no layer of the student.
        shown = sorted(
            (one for one in candidates.values() if one.requires_grad and one.grad_fn is not None),
            key=lambda one: -one.grad_fn._sequence_nr(),  # type: ignore[union-attr]
        )
        # Of every loss, that processes with and without a gradient have the same numbers to add up.
        look.pulls = {name: loss.new_zeros((), dtype=torch.float64) for name, loss in losses.items()}
        try:
            for name, loss in losses.items():
                for tensor in shown if loss.requires_grad else ():
                    (gradient,) = torch.autograd.grad(loss, [tensor], retain_graph=True, allow_unused=True)
                    if gradient is not None:
                        look.pulls[name] = gradient.double().square().sum()
                        break
        except RuntimeError:
            # Some graphs can't be differentiated in parts, as with reentrant checkpointing.
            self.gradients, look.pulls = False, {}

    def before_update(self) -> None:
        """Keep a sample of the weights that the update may change."""
        if self._look is not None:
            now = [sampled(parameter) for parameter in self.parameters]
            self._sizes = sums_of_squares(now)
            # Copies in one call: a clone each is a kernel each.
            self._before = list(torch._foreach_mul(now, 1.0))

    def end(self) -> None:
        """The step is over: compare the weights; a step that was not taken is not looked at."""
        look = self._look
        if look is not None and self._before and self._sizes is not None:
            now = [sampled(parameter) for parameter in self.parameters]
            moved = sums_of_squares(torch._foreach_sub(now, self._before))
            # A weight that was zero throughout can only change by more than itself.
            look.moved = torch.where(self._sizes > 0, moved, 0.0).sum()
            look.size = self._sizes.sum()
            self.waiting.append(look)
        self.forget()

    def forget(self) -> None:
        """Look no longer at the current step."""
        if self._look is not None:
            self._hooks.close()
            self.run.trainee.observer = None
        self._look, self._view, self._before, self._sizes = None, None, [], None

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Look at the student's outputs while it is measured."""
        found: list[tuple[Tensor, Tensor | None]] = []

        def note(_module: nn.Module, _args: Any, outputs: Any) -> None:
            if isinstance(outputs, Mapping):
                logits, feature = self.measured.of(outputs)
                if logits is not None:
                    centred = _centred(logits)
                    sums = torch.stack([centred.sum(0), centred.square().sum(0)])
                    usable = feature is not None and feature.ndim == 2
                    counts = torch.full_like(sums[:1], len(logits))
                    alive = differs(feature) if usable and feature is not None else None
                    found.append((torch.cat([sums, counts]), alive))

        handle = self.run.deployed.register_forward_hook(note)
        try:
            with self.measured.watching():
                yield
        finally:
            handle.remove()
        self.evaluated = self._summed(found)

    def _summed(self, found: list[tuple[Tensor, Tensor | None]]) -> EvaluationLook | None:
        """Spread of the logits and units alive over all batches of all processes."""
        own: list[Any] = []
        if found:
            total = torch.stack([sums for sums, _ in found]).sum(0).tolist()
            features = [feature for _, feature in found if feature is not None]
            own = [total, torch.stack(features).sum(0).tolist() if features else []]
        rows = [row for row in self.run.processes.gather(own) if row]
        if not rows:
            return None
        sums, squares, counts = torch.tensor([row[0] for row in rows], dtype=torch.float64).sum(0)
        variance = (squares / counts - (sums / counts).square()).clamp(min=0)
        units = [row[1] for row in rows if row[1]]
        alive = torch.tensor(units, dtype=torch.float64).sum(0).tolist() if units else []
        return EvaluationLook(float(variance.mean().sqrt()), alive)

    def read(self) -> Iterator[tuple[Look, LookRead]]:
        """The looks since the last call with their numbers over all processes, after one read of the device."""
        looks, self.waiting = self.waiting, []
        if not looks:
            return
        device = self.run.processes.device
        parts: list[Tensor] = []
        for look in looks:
            assert look.moved is not None and look.size is not None
            parts += [look.moved.reshape(1), look.size.reshape(1)]
            parts += [look.spread.reshape(1)] if look.spread is not None else []
            parts += [one.reshape(1) for one in look.pulls.values()]
            parts += [look.alive] if look.alive is not None else []
        world = self.run.processes.world_size
        flat = self.run.processes.sum(torch.cat([part.to(device) for part in parts])).tolist()
        numbers = iter(flat)
        for look in looks:
            moved, size = next(numbers), next(numbers)
            spread = None if look.spread is None else next(numbers) / world
            pulls = {name: math.sqrt(next(numbers) / world) for name in look.pulls}
            alive = None if look.alive is None else [next(numbers) for _ in range(len(look.alive))]
            change = math.sqrt(moved / size) if size > 0 and math.isfinite(moved / size) else None
            yield look, LookRead(change=change, spread=spread, pulls=pulls, alive=alive)
