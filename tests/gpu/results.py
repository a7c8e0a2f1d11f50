"""Checks that a GPU computes what the CPU does, the same twice, and without being waited for."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdcli.data.batches import normalized
from kdcli.distill.taps import tensors_in
from kdcli.parallel.devices import to_device
from kdcli.parallel.distributed import Processes
from kdcli.records import Step
from kdcli.spec.parse import parse
from kdcli.spec.places import Places
from kdcli.spec.text.overrides import parse_assignment
from kdcli.training import train as training
from kdcli.training.build import built
from kdcli.training.run import Run, RunOptions
from tests.gpu.lines import HAS_DETERMINISTIC, Lines, Machine, images_spec, text_of
from tests.parallel import test_pretend_cuda as pretend
from tests.scenes import on_scenes, write_scenes

CPU = torch.device("cpu")
WAITED = "called a synchronizing"
"""In every warning of torch's for a wait; it also warns, once, that the mode which counts them is a prototype."""

LOSSES, GRADIENTS = 1e-3, 2e-2
"""How far the first step may be from the CPU's: a loss in parts of it, all gradients in parts of their norm. Sums are
taken in another order; a wrong operand is off by tenths."""


@contextmanager
def opened(
    spec: dict[str, Any] | str, device: torch.device, *changes: str, resume: bool = False
) -> Iterator[Run]:
    """A run built on a device."""
    overrides = [parse_assignment(change, number) for number, change in enumerate(changes, 1)]
    text = spec if isinstance(spec, str) else text_of(spec)
    parsed = parse(text, "gpu.yaml", overrides=overrides, base_dir=pretend.SAMPLES)
    options = RunOptions(overwrite=not resume, resume=resume, places=Places(pretend.SAMPLES))
    with built(parsed, options, Processes(device=device)) as run:
        yield run


def steps_of(
    spec: dict[str, Any] | str, device: torch.device, *changes: str, resume: bool = False
) -> list[Step]:
    """The steps of a whole run."""
    with opened(spec, device, *changes, resume=resume) as run:
        return [record for record in training.train(run) if isinstance(record, Step)]


def first_step(spec: dict[str, Any], device: torch.device) -> tuple[dict[str, float], Tensor]:
    """The losses of a run's first step, and the gradients that its optimizer gets, as one vector."""
    gradients: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not gradients:
            groups = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            gradients.append(
                torch.cat([p.grad.detach().double().flatten().cpu() for p in groups if p.grad is not None])
            )

    handle = register_optimizer_step_pre_hook(keep)
    try:
        losses = dict(steps_of(spec, device)[0].losses)
    finally:
        handle.remove()
    return losses, gradients[0]


def methods(machine: Machine, lines: Lines) -> None:
    """Every method: losses and gradients of the first step are the CPU's, in fp32."""
    rows = ["kd_loss", *pretend.ROWS] if machine.cuda else ["kd_loss", "fitnet"]
    worst: dict[str, tuple[float, float]] = {}
    failed: dict[str, str] = {}
    for row in rows:
        try:
            specs = [pretend.spec_for(row, machine.new_folder(), max_iter=1) for _ in range(2)]
            for spec in specs:
                spec["runtime"]["tf32"] = False
                if row == "ft":
                    spec["trainer"].pop("max_iter")
            (ours, own), (there, other) = (
                first_step(spec, device) for spec, device in zip(specs, (CPU, machine.device), strict=True)
            )
            off = max(abs(value - there[name]) / max(abs(value), 1e-3) for name, value in ours.items())
            worst[row] = (off, float((own - other).norm() / own.norm().clamp_min(1e-12)))
        except Exception as error:
            failed[row] = f"{type(error).__name__}: {str(error)[:80]}"
    for row, reason in failed.items():
        lines.add(f"{row} runs", reason, "no exception", False)
    for number, (what, limit) in enumerate((("losses", LOSSES), ("gradients", GRADIENTS))):
        far = {row: values[number] for row, values in worst.items() if not values[number] <= limit}
        for row, value in far.items():
            lines.most(f"{what} of {row} to the CPU's", value, limit)
        rest = [values[number] for row, values in worst.items() if row not in far]
        lines.most(f"{what} of {len(rest)} methods to the CPU's, worst", max(rest, default=0.0), limit)


@contextmanager
def counted(machine: Machine, waits: list[str]) -> Iterator[None]:
    """A block in which every wait of a training step is noted, by CUDA's own count."""
    step: Callable[..., None] = training.TrainLoop.step

    def watched(loop: training.TrainLoop, *arguments: Any) -> None:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step(loop, *arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = [f"{Path(w.filename).name}:{w.lineno}" for w in heard if WAITED in str(w.message)]
        # The proof of the first step looks at its numbers until it has them: as on the pretend device, not counted.
        waits.extend(place for place in places if not place.startswith("first_step.py:"))

    with mock.patch.object(training.TrainLoop, "step", watched):
        yield


def waits_of(machine: Machine, spec: dict[str, Any] | str, *changes: str) -> tuple[int, list[str]]:
    """Steps of a run, and every wait in them; on the CPU as the pretend device tells them."""
    if not machine.cuda:
        outcome = pretend.run(spec, *changes)
        found = pretend.waits(outcome)
        return len(outcome.losses), [find.place for find, count in found.items() for _ in range(count)]
    waits: list[str] = []
    with counted(machine, waits):
        steps = len(steps_of(spec, machine.device, *changes))
    return steps, waits


def _waits(machine: Machine, lines: Lines, name: str, limit: int, spec: Any, *changes: str) -> None:
    steps, waits = waits_of(machine, spec, *changes)
    most = Counter(waits).most_common(3)
    where = f" ({', '.join(f'{place} {count}' for place, count in most)})" if waits else ""
    each = len(waits) / max(steps, 1)
    lines.most(f"of a step, {name}", each, limit, f"{each:.3g}{where}")


def waits(machine: Machine, lines: Lines) -> None:
    """A classifier's step never makes the host wait: every method, and every mode."""
    rows = ["kd_loss", *pretend.ROWS] if machine.cuda else ["kd_loss"]
    for row in rows:
        _waits(machine, lines, row, 0, pretend.spec_for(row, machine.new_folder()))
    for mode, changes in pretend.MODES.items():
        if machine.cuda or mode == "bf16":
            spec = pretend.spec_for("fitnet", machine.new_folder())
            for key, value in changes.items():
                block, _, name = key.partition(".")
                spec[block][name] = value
            _waits(machine, lines, mode, 0, spec)


def detector_waits(machine: Machine, lines: Lines) -> None:
    """A detector's step makes the host wait no more often than on the pretend device, whatever the number of images."""
    scenes = write_scenes(machine.new_folder(), num_train=8)
    for name in ("frs", "sample_feature", "defeat") if machine.cuda else ("frs",):
        limit, teacher = pretend.DETECTORS[name]
        for images in (2, 4) if machine.cuda else (2,):
            changes = [*on_scenes(scenes), *teacher, f"saver.save_dir={machine.new_folder()}"]
            changes += [f"dataset.batch_sampler.kwargs.batch_size={images}"]
            # The pretend device is of one thread: no data worker.
            changes += [
                "dataset.dataloader.kwargs.pin_memory=true",
                "dataset.dataloader.kwargs.num_workers=0",
            ]
            text = (pretend.SAMPLES / f"scenes_{name}.yaml").read_text()
            _waits(machine, lines, f"{name}, {images} images", limit, text, *changes)
    for kind, (limit, _) in pretend.WHOLE.items() if machine.cuda else ():
        for images in (2, 4):
            folder = machine.new_folder()
            write_scenes(folder, num_train=images)
            spec = pretend.whole_spec(kind, folder, images)
            _waits(machine, lines, f"torchvision's {kind}, {images} images", limit, spec)


RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp32 SGD": ({}, {}),
    "bf16 channels_last": ({"precision": "bf16", "channels_last": True}, {}),
    "fp16 AdamW EMA": (
        {"precision": "fp16"},
        {
            "optimizer": {"type": "AdamW", "kwargs": {"lr": 1e-3}},
            "ema": {"enable": True, "ema_type": "exp", "kwargs": {"decay": 0.99}},
        },
    ),
}
"""Modes of a run that is resumed: keys of runtime, of trainer."""


def resumed(machine: Machine, lines: Lines) -> None:
    """A run that is stopped and resumed ends as one that is not, bit for bit."""
    steps = machine.size(12, 4)
    for name, (runtime, trainer) in RESUMED.items():
        if not machine.cuda and "fp16" in name:
            continue
        runtime = {**runtime, **({"deterministic": True} if HAS_DETERMINISTIC else {})}
        files, losses = [], []
        for halves in ((steps,), (steps,), (steps // 2, steps)):
            spec = images_spec(machine, batch=machine.size(64, 8), steps=steps, **runtime)
            spec["trainer"] |= {**trainer, "save_freq": 1}
            taken: list[Step] = []
            for number, last in enumerate(halves):
                spec["trainer"]["max_iter"] = last
                taken += steps_of(spec, machine.device, resume=number > 0)
            files.append(load_file(Path(spec["saver"]["save_dir"]) / "student.safetensors"))
            losses.append([dict(step.losses) for step in taken])
            shutil.rmtree(spec["saver"]["save_dir"])
        whole, again, parts = files
        same = all(torch.equal(whole[key], again[key]) for key in whole)
        back = all(torch.equal(whole[key], parts[key]) for key in whole) and losses[0] == losses[2]
        lines.add(f"twice the same, {name}", same, "bit for bit", same)
        lines.add(f"resumed is uninterrupted, {name}", back, "bit for bit", back)


FOLDED = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""How far the logits of a folded teacher may be from its own, in parts of their norm: what each precision rounds by."""


def shake(net: torch.nn.Module) -> None:
    """Give every BatchNorm statistics and weights that folding has to carry over; new ones hardly do anything."""
    draw = torch.Generator().manual_seed(0)
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for values, low in (
            (norm.running_mean, -0.3),
            (norm.running_var, 0.5),
            (norm.weight, 0.7),
            (norm.bias, -0.3),
        ):
            assert values is not None
            drawn = low + 0.6 * torch.rand(values.shape, generator=draw)
            with torch.no_grad():
                values.copy_(drawn)


def logits_of(run: Run) -> Tensor:
    """What the teacher shows of the run's first batch."""
    teacher, device = run.teachers["teacher0"], run.processes.device
    batch = normalized(to_device(dict(next(iter(run.train_loader.batches(0)))), device))
    (logits,) = tensors_in(teacher.view(batch).features["logits"])
    return logits.detach().double().cpu()


def folding(machine: Machine, lines: Lines) -> None:
    """`fold_bn` folds every BatchNorm of the teacher in every precision, and its logits stay."""
    for precision, limit in FOLDED.items():
        if precision == "fp16" and not machine.cuda:
            continue
        spec = images_spec(machine, batch=8, steps=1, precision=precision, tf32=False)
        weights = machine.new_folder().with_suffix(".safetensors")
        with opened(spec, machine.device) as run:
            net = run.teachers["teacher0"].net
            shake(net)
            save_file({key: value.contiguous() for key, value in net.state_dict().items()}, weights)
            own = logits_of(run)
        spec["runtime"]["fold_bn"] = True
        spec["mimic"]["teacher0"] = {
            "mimic_name": ["logits"],
            "allow_weak_teacher": True,
            "teacher_weight": str(weights),
        }
        with opened(spec, machine.device) as run:
            left = sum(isinstance(m, torch.nn.BatchNorm2d) for m in run.teachers["teacher0"].net.modules())
            of = sum(isinstance(m, torch.nn.BatchNorm2d) for m in run.student.modules())
            said = [notice for notice in run.notices if "are folded" in notice]
            off = float((logits_of(run) - own).norm() / own.norm())
        lines.add(
            f"BatchNorms left, {precision}", left, "0, with a notice", of > 0 and not left and bool(said)
        )
        lines.most(f"logits to the unfolded teacher's, {precision}", off, limit)
