"""The two sides of the speed benchmarks: a run of kdcli, and the same work written by hand."""

from __future__ import annotations

import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from kdcli.models.network import build_network
from kdcli.parallel.distributed import Processes
from kdcli.records import Step
from kdcli.report.live.recorder import Recorder
from kdcli.report.loggers.background import Loggers
from kdcli.report.loggers.logger import LoggedRun
from kdcli.spec.parse import parse
from kdcli.spec.schema import ModuleSpec
from kdcli.training.build import built
from kdcli.training.run import Run, RunOptions
from kdcli.training.train import train

BATCH, CLASSES, SIZE = 128, 100, 32
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
LR, MOMENTUM, DECAY, TEMPERATURE = 0.01, 0.9, 5e-4, 4.0
SAMPLES = 256 * BATCH
"""Enough for every benchmark to stay within an epoch."""

PAIRS = {
    "resnet": ("torchvision.resnet34", "torchvision.resnet18"),
    "small": ("cifar_resnet32", "cifar_resnet20"),
    "tiny": ("cifar_resnet8", "cifar_resnet8"),
}
FEATURES = {"resnet": "model.layer3", "small": "model.layer3", "tiny": "model.layer3"}
KWARGS: dict[str, dict[str, object]] = {"tiny": {"widths": [2, 2, 4, 4]}}
"""Arguments of a pair's networks beside the number of classes."""


def spec_text(
    pair: str,
    jobs: str,
    folder: Path,
    *,
    teachers: int = 1,
    taps: list[str] | None = None,
    samples: int = SAMPLES,
    log_freq: int = 10,
    cache: dict[str, object] | None = None,
    runtime: dict[str, object] | None = None,
    task_loss: bool = True,
    batch: int = BATCH,
) -> str:
    """A spec: jobs is `logits`, `feature`, or `alone` for the student without a teacher."""
    teacher, student = PAIRS[pair]
    module = {"name": "model", "kwargs": {"num_classes": CLASSES, **KWARGS.get(pair, {})}}
    names = taps or (["logits"] if jobs == "logits" else [FEATURES[pair]])
    transformer = [
        {"type": "torch_random_horizontal_flip"},
        {"type": "to_tensor"},
        {"type": "normalize", "kwargs": {"mean": MEAN, "std": STD}},
    ]
    data = {"shape": [3, SIZE, SIZE], "num_classes": CLASSES, "transformer": transformer}
    spec: dict[str, object] = {
        "runtime": {"runner": {"type": "base" if jobs == "alone" else "kd"}, **(runtime or {})},
        "net": [{**module, "type": student}],
        "dataset": {
            "train": {"dataset": {"type": "fake", "kwargs": {**data, "num_samples": samples}}},
            "test": {"dataset": {"type": "fake", "kwargs": {**data, "num_samples": batch}}},
            "batch_sampler": {"type": "base", "kwargs": {"batch_size": batch}},
        },
        "trainer": {
            # Neither measured nor saved on the way.
            "max_iter": 1_000_000,
            "test_freq": 1_000_000,
            "save_freq": 1_000_000,
            "log_freq": log_freq,
            "optimizer": {
                "type": "SGD",
                "kwargs": {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY},
            },
        },
        "saver": {"save_dir": str(folder / "run")},
    }
    if jobs != "alone":
        part = {"mimic_name": names, "allow_random": True, "allow_weak_teacher": True}
        if cache is not None:
            part["cache"] = cache
        loss = {"type": "kd_loss", "kwargs": {"T": TEMPERATURE}} if jobs == "logits" else {"type": "l2_loss"}
        spec |= {f"teacher{n}": [{**module, "type": teacher}] for n in range(teachers)}
        spec["mimic"] = {
            "task_loss": task_loss,
            "cfgs": {"loss": loss},
            **{f"teacher{n}": part for n in range(teachers)},
            "student": {"mimic_name": names},
        }
    return yaml.safe_dump(spec, sort_keys=False)


@contextmanager
def kdcli_run(text: str, folder: Path) -> Iterator[Run]:
    """A run built from a spec's text."""
    parsed = parse(text, str(folder / "spec.yaml"), base_dir=None)
    here = Processes(device=torch.device("cpu"))
    with built(parsed, RunOptions(overwrite=True), here) as run:
        yield run


@contextmanager
def kdcli_side(
    *, uncut: bool = False, clock: Callable[[], float] = time.perf_counter, **spec: object
) -> Iterator[Callable[[], float]]:
    """Seconds a step of the whole of kdcli, as `kdcli train` does it: records, log, metrics.jsonl, screen.

    spec: as spec_text takes it. uncut: every network runs to its end. Each call goes on by `log_freq` steps.
    """
    steps: int = spec.get("log_freq", 10)  # type: ignore[assignment]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        text = spec_text(folder=folder, **spec)  # type: ignore[arg-type]
        run = stack.enter_context(kdcli_run(text, folder))
        logged = LoggedRun(name=run.name, run_dir=run.folder.root, spec={}, spec_text=text)
        with redirect_stderr(io.StringIO()):
            recorder = Recorder(
                metrics=run.folder.metrics,
                log=run.folder.log,
                spec=["spec.yaml"],
                quiet=False,
                loggers=Loggers((), logged, metrics=run.folder.metrics),
            )
            stack.enter_context(recorder)
        records = train(run)
        stack.callback(records.close)  # type: ignore[attr-defined]

        def go_on() -> float:
            start, seen = clock(), 0
            for record in records:
                recorder.take(record)
                seen += isinstance(record, Step)
                if seen == steps:
                    break
            return (clock() - start) / float(steps)

        go_on()
        if uncut:
            for taps in (run.trainee.taps, *(teacher.taps for teacher in run.teachers.values())):
                if taps is not None:
                    taps.outputs = None
        yield go_on


def network(name: str, **kwargs: object) -> nn.Module:
    """A network by its type in a spec, bare."""
    spec = ModuleSpec(name="model", type=name, kwargs={"num_classes": CLASSES, **kwargs})
    return build_network([spec], path=("net",)).get_submodule("model")


class Features(nn.Module):
    """A network by hand that gives a layer's output beside its logits, or stops there."""

    def __init__(self, net: nn.Module, layer: str | None, *, stop: bool) -> None:
        super().__init__()
        self.net, self.stop = net, stop
        self.feature: Tensor | None = None
        if layer is not None:
            net.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _args: object, output: Tensor) -> None:
        self.feature = output
        if self.stop:
            raise StopIteration

    def forward(self, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Logits and feature."""
        try:
            return self.net(image), self.feature
        except StopIteration:
            return None, self.feature


@contextmanager
def hand_side(
    pair: str,
    jobs: str,
    *,
    steps: int = 10,
    samples: int = SAMPLES,
    batch: int = BATCH,
    stop_teacher: bool = True,
    layer: str | None = None,
    cheaper: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Callable[[], float]]:
    """Seconds a step of a loop with nothing in it but the work.

    cheaper: in bfloat16 under autocast, channels last, and the teacher with its BatchNorms folded by torch's own
    tool and its weights held in bfloat16. Logits alone.
    """
    torch.manual_seed(0)
    teacher_type, student_type = PAIRS[pair]
    layer = (layer or FEATURES[pair].partition(".")[2]) if jobs == "feature" else None
    kwargs = KWARGS.get(pair, {})
    student = Features(network(student_type, **kwargs), layer, stop=False).train()
    teacher = Features(network(teacher_type, **kwargs), layer, stop=stop_teacher and layer is not None)
    teacher.eval().requires_grad_(False)
    if cheaper:
        student.to(memory_format=torch.channels_last)
        teacher.net = fuse(teacher.net).to(torch.bfloat16, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    images = torch.randint(0, 256, (samples, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(samples) % CLASSES
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    batches = itertools.chain.from_iterable(
        torch.split(torch.randperm(samples), batch) for _ in itertools.count()
    )

    def step(ids: Tensor) -> Tensor:
        image = images[ids]
        flip = torch.rand(len(ids)) < 0.5
        image[flip] = image[flip].flip(-1)
        image = image.float().div_(255).sub_(mean).div_(std)
        optimizer.zero_grad(set_to_none=True)
        theirs: tuple[Tensor | None, Tensor | None] = (None, None)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cheaper):
            if cheaper:
                image = image.to(memory_format=torch.channels_last)
            if jobs != "alone":
                with torch.no_grad():
                    theirs = teacher(image)
            logits, feature = student(image)
        if cheaper:
            assert logits is not None and theirs[0] is not None
            logits, theirs = logits.float(), (theirs[0].float(), None)
        loss = F.cross_entropy(logits, labels[ids])
        if jobs == "logits":
            assert theirs[0] is not None
            ours, other = (x.div(TEMPERATURE).log_softmax(1) for x in (logits, theirs[0]))
            loss = loss + F.kl_div(ours, other, reduction="batchmean", log_target=True) * TEMPERATURE**2
        elif jobs == "feature":
            assert feature is not None and theirs[1] is not None
            # What `l2_loss` is by default: of each sample's feature the direction, squares summed, a mean over samples.
            ours, other = (F.normalize(x.flatten(1)) for x in (feature, theirs[1]))
            loss = loss + (ours - other).square().sum() / len(ours)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    def go_on() -> float:
        start, losses = clock(), []
        for ids in itertools.islice(batches, steps):
            losses.append(step(ids))
        print(f"loss {torch.stack(losses).mean():.4f}", file=io.StringIO())
        return (clock() - start) / steps

    go_on()
    yield go_on


def resident_megabytes() -> float:
    """The most memory this process has held; Linux alone says it apart from its parent's."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(float(line.split()[1]) / 1e3 for line in file if line.startswith("VmHWM"))
