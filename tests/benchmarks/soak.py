"""A long training of a tiny net: memory and time a step, for each 10,000 steps, and the last over the second.

    python -m tests.benchmarks.soak [STEPS] [--every 10000] [--loggers tensorboard]

Both stay flat in a run that may take weeks. What is measured is the whole of `kdcli train`: records, log,
metrics.jsonl, checkpoints, evaluations, loggers. The first span is left out of the ratios: caches fill and
allocators settle in it. On a busy machine the processor time tells more than the wall's.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from contextlib import ExitStack, redirect_stderr
from pathlib import Path

import torch

from kdcli.parallel.distributed import Processes
from kdcli.records import Step
from kdcli.report.live.recorder import Recorder
from kdcli.report.loggers.background import Loggers
from kdcli.report.loggers.logger import LoggedRun
from kdcli.spec.parse import parse
from kdcli.training.build import built
from kdcli.training.run import RunOptions
from kdcli.training.train import train

SPEC = """
runtime: {{runner: {{type: kd}}, random_seed: 1}}
net: {{name: model, type: cifar_resnet8, kwargs: {{num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}}}}
teacher0: {{name: model, type: cifar_resnet8, kwargs: {{num_classes: 4, in_channels: 1, widths: [4, 4, 4, 8]}}}}
mimic:
  cfgs: {{loss: {{type: kd_loss, kwargs: {{T: 4}}}}}}
  student: {{mimic_name: [logits]}}
  teacher0: {{mimic_name: [logits], allow_random: true, allow_weak_teacher: true}}
dataset:
  train: &part
    dataset:
      type: fake
      kwargs: {{num_samples: 400, num_classes: 4, shape: [1, 8, 8], transformer: [{{type: to_tensor}}]}}
  test: *part
  batch_sampler: {{type: base, kwargs: {{batch_size: 4}}}}
trainer:
  max_iter: {steps}
  log_freq: 10
  test_freq: 10
  save_freq: 10
  ema: {{kwargs: {{decay: 0.99}}}}
  loggers: [{loggers}]
  optimizer: {{type: SGD, kwargs: {{lr: 0.01, momentum: 0.9}}}}
saver: {{save_dir: {folder}}}
"""


def resident_mib() -> float:
    """The memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def soak(steps: int, every: int, loggers: str) -> list[tuple[float, float, float]]:
    """Train; for each span of `every` steps: MiB of memory at its end, milliseconds a step by wall and processor."""
    spans: list[tuple[float, float, float]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        parsed = parse(SPEC.format(steps=steps, folder=folder, loggers=loggers), "soak.yaml")
        run = stack.enter_context(built(parsed, RunOptions(), Processes(device=torch.device("cpu"))))
        logged = LoggedRun(name=run.name, run_dir=run.folder.root, spec={}, spec_text="")
        names = parsed.spec.trainer.loggers
        stack.enter_context(redirect_stderr(io.StringIO()))
        recorder = stack.enter_context(
            Recorder(
                metrics=run.folder.metrics,
                log=run.folder.log,
                spec=["soak.yaml"],
                quiet=True,
                loggers=Loggers(names, logged, metrics=run.folder.metrics),
            )
        )
        began = time.perf_counter(), time.process_time()
        for record in train(run):
            recorder.take(record)
            if isinstance(record, Step) and record.step % every == 0:
                now = time.perf_counter(), time.process_time()
                wall, processor = (
                    1000 * (after - before) / every for before, after in zip(began, now, strict=True)
                )
                spans.append((resident_mib(), wall, processor))
                line = f"{record.step:>9,} steps  {resident_mib():8.1f} MiB  {wall:7.3f} ms a step"
                print(f"{line}, {processor:.3f} ms of processor", flush=True)
                began = now
    return spans


def main() -> None:
    """Print the spans, and the last over the second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="?", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--loggers", default="")
    given = parser.parse_args()
    spans = soak(given.steps, given.every, given.loggers)
    if len(spans) > 2:
        memory, wall, processor = (spans[-1][part] / spans[1][part] for part in range(3))
        print(
            f"the last span over the second: memory {memory:.3f}, a step {wall:.3f}, processor {processor:.3f}"
        )


if __name__ == "__main__":
    main()
