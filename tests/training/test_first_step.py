"""The first real step of a stage moves weights, by a finite amount, and against the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdcli.errors import RunError
from kdcli.records import Notice, Record
from kdcli.spec.schema import OptimizerSpec
from kdcli.spec.tables import OPTIMIZERS
from kdcli.training.first_step import ELEMENTS, _some, prove_first_step
from kdcli.training.optim import optimizer_class
from kdcli.training.run import Run
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of, train_all

Change = Callable[[torch.optim.Optimizer, int], None]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with run_of(spec_of(SPEC)) as made:
        yield made


class Uphill(torch.optim.SGD):
    """A user's optimizer with a slip: it adds the gradient, turned by so many times the weights."""

    turn = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter += group["lr"] * (parameter.grad + self.turn * torch.randn_like(parameter))


class Idle(torch.optim.SGD):
    """A user's optimizer that takes its step at every second call."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


def steps(
    run: Run,
    name: str = "SGD",
    made: type[torch.optim.Optimizer] | None = None,
    *,
    target: float = 0.1,
    count: int = 1,
    before: Change = lambda *_: None,
    weights: Callable[[nn.Linear], None] = lambda _: None,
    **kwargs: Any,
) -> list[Notice]:
    """The warnings of an optimizer's first steps on a layer whose loss is half its squared output."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    weights(layer)
    plan = replace(run.stages[0], optimizer=OptimizerSpec(type=name))
    shapes = [p for p in layer.parameters() if p.dim() == 2] if name == "Muon" else list(layer.parameters())
    optimizer = (made or optimizer_class(name))(shapes, **{"lr": 0.1, **kwargs})
    notices: list[Notice] = []
    prove_first_step(run, plan, optimizer, target, notices)
    images = torch.randn(8, 40)
    for number in range(count):
        optimizer.zero_grad()
        (layer(images).square().sum() / 2).backward()
        before(optimizer, number)
        optimizer.step()
    return notices


def refused(run: Run, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(RunError) as caught:
        steps(run, *args, **kwargs)
    (finding,) = caught.value.diagnostics
    assert finding.path == ("trainer", "optimizer")
    return f"{finding.code}: {finding.message}"


@pytest.mark.parametrize("decay", [0.0, 3.0])
@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"SparseAdam"}))
def test_an_optimizer_of_torch_goes_downhill_whatever_its_weight_decay(
    run: Run, name: str, decay: float
) -> None:
    kwargs = {} if name == "Rprop" else {"weight_decay": decay}
    assert steps(run, name, lr=0.01, count=2, **kwargs) == []


def test_decay_beside_the_step_is_no_update_uphill(run: Run) -> None:
    # The gradient is -w/10 and decay takes a third of w away: update · gradient alone is positive.
    def gradient(optimizer: torch.optim.Optimizer, _: int) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = -0.1 * parameter.detach()

    for name, kwargs in (
        ("AdamW", {"lr": 1e-4, "weight_decay": 3333.0}),
        ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 3.0}),
    ):
        assert steps(run, name, before=gradient, **kwargs) == []


def test_an_update_along_the_gradient_stops_the_run(run: Run) -> None:
    assert "`maximize: true`" in refused(run, "SGD", maximize=True, momentum=0.9)
    assert "KD707" in refused(run, "AdamW", maximize=True)

    def negative(optimizer: torch.optim.Optimizer, _: int) -> None:
        optimizer.param_groups[0]["lr"] = -0.1

    assert "the cosine between them is 1.00" in refused(run, "SGD", before=negative)
    assert "KD707" in refused(run, "mine:Uphill", Uphill)


def test_an_update_that_is_nearly_square_to_the_gradient_is_a_warning(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uphill, "turn", 20.0)
    (notice,) = steps(run, "mine:Uphill", Uphill, count=3)
    assert notice.level == "warning" and notice.message.startswith("KD707: ")


def test_a_step_that_is_lost_in_rounding_stops_the_run(run: Run) -> None:
    assert "KD705: the first step of SGD does not train" in refused(run, lr=1e-30, target=1e-30)
    # Weights of 0 take on the smallest number, whatever that helps; where there are no others, they count.
    assert "KD705" in refused(run, lr=1e-30, target=1e-30, weights=lambda layer: nn.init.zeros_(layer.bias))
    assert steps(run, lr=1e-30, target=1e-30, weights=_zeros) == []


def _zeros(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 0.0)
    layer.weight.requires_grad_(False)


def test_an_own_optimizer_that_waits_is_a_warning(run: Run) -> None:
    (notice,) = steps(run, "mine:Idle", Idle, count=3)
    assert notice.level == "warning" and "KD705" in notice.message and "changes no weight" in notice.message


def test_a_weight_that_is_no_longer_finite_is_named(run: Run) -> None:
    message = refused(run, lr=1e39, fused=True)
    assert "KD706" in message and "not finite" in message


@pytest.mark.parametrize("start", [0.0, 1e-30])
def test_a_warm_up_from_nothing_is_proved_at_its_first_real_step(run: Run, start: float) -> None:
    def warm_up(optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.param_groups[0]["lr"] = start if number < 2 else 0.1

    assert steps(run, before=warm_up, count=4, momentum=0.9) == []
    assert "KD707" in refused(run, before=warm_up, count=3, momentum=0.9, maximize=True)
    assert steps(run, before=warm_up, count=2, maximize=True) == [], "not before"


def test_a_step_without_a_gradient_or_that_a_scaler_skips_is_no_proof(run: Run) -> None:
    def skip(optimizer: torch.optim.Optimizer, number: int) -> None:
        if number == 0:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad.fill_(torch.inf)
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(number == 0))  # type: ignore[attr-defined]

    assert steps(run, before=skip, count=3, fused=True) == []
    assert "KD707" in refused(run, before=skip, count=3, fused=True, maximize=True)

    def nothing(optimizer: torch.optim.Optimizer, number: int) -> None:
        if number == 0:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad.zero_()

    assert "KD707" in refused(run, before=nothing, count=2, maximize=True)


def test_few_elements_of_each_parameter_are_kept() -> None:
    kernel = torch.zeros(64, 64, 3, 3).to(memory_format=torch.channels_last)
    kernel[:, :, 1, 1] = 1.0
    some = _some(kernel)
    assert len(some) == ELEMENTS and 0.05 < float(some.mean()) < 0.2, "all places of the kernel are looked at"
    assert _some(torch.tensor(3.0)).tolist() == [3.0] and _some(torch.arange(3.0)).tolist() == [0, 1, 2]


STAGES = (
    "mimic.stages=[{name: hint, max_iter: 2, task_loss: false},"
    " {name: task, max_iter: 2, optimizer: {type: SGD, kwargs: {lr: 0.05, maximize: true}}}]"
)


def test_each_stage_proves_its_own_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records: list[Record] = []
    spec = spec_of(SPEC, STAGES, "trainer.max_epoch=null", "mimic.warm_up_iters=0")
    with run_of(spec) as run, pytest.raises(RunError, match="of stage `task` does not train") as caught:
        for record in train(run):
            records.append(record)
    assert caught.value.diagnostics[0].path == ("mimic", "stages", 1, "optimizer") and records


def test_accumulated_clipped_half_precision_steps_are_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        "trainer.max_epoch=1",
        "trainer.accumulate_steps=2",
        "trainer.clip_grad_norm=0.5",
        "runtime.precision=bf16",
    ]
    records = train_all(spec_of(SPEC, *given))
    assert not [r for r in records if isinstance(r, Notice) and "KD70" in r.message]
    given += ["trainer.optimizer.kwargs.maximize=true", "saver.save_dir=second"]
    with pytest.raises(RunError, match="follows the gradient"):
        train_all(spec_of(SPEC, *given))
