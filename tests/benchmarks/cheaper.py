"""What a cheaper teacher and cheaper arithmetic bring: live distillation against the fp32 loop by hand.

python -m tests.benchmarks.cheaper [ROUNDS]
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import torch

from tests.benchmarks.measure import THREADS, Row, machine, median_ratio, table
from tests.benchmarks.sides import BATCH, hand_side, kdcli_side

STEPS = 3
BF16: dict[str, Any] = {"precision": "bf16"}
CASES: dict[str, tuple[dict[str, Any], float | None]] = {
    "fold_bn": ({"fold_bn": True}, 1.0),
    "fold_bn, channels_last": ({"fold_bn": True, "channels_last": True}, None),
    "compile": ({"compile": True}, None),
    "compile, fold_bn, channels_last": (
        {"compile": True, "fold_bn": True, "channels_last": True},
        None,
    ),
    "teacher in bf16": ({"teacher_precision": "bf16"}, None),
    "bf16, fold_bn, channels_last": ({**BF16, "fold_bn": True, "channels_last": True}, 1.40),
}


def rows(rounds: int) -> list[Row]:
    """Every case of logits KD, ResNet-34 to ResNet-18, 32x32, batch 128."""
    torch.set_num_threads(THREADS)
    found = []
    for what, (runtime, due) in CASES.items():
        with ExitStack() as stack:
            samples = BATCH * STEPS * 2
            sides = {
                "kdcli": stack.enter_context(
                    kdcli_side(pair="resnet", jobs="logits", log_freq=STEPS, samples=samples, runtime=runtime)
                ),
                "hand": stack.enter_context(hand_side("resnet", "logits", steps=STEPS, samples=samples)),
            }
            ratio, seconds = median_ratio(sides, rounds, "hand", "kdcli")
        found.append(Row(f"{what}: images/s", f"{BATCH / seconds:,.0f}", ratio, due))
    with ExitStack() as stack:
        loops = {
            name: stack.enter_context(
                hand_side(
                    "resnet", "logits", steps=STEPS, samples=BATCH * STEPS * 2, cheaper=name == "cheaper"
                )
            )
            for name in ("hand", "cheaper")
        }
        ratio, seconds = median_ratio(loops, rounds, "hand", "cheaper")
    found.append(Row(f"{what}, by hand: images/s", f"{BATCH / seconds:,.0f}", ratio))
    return found


if __name__ == "__main__":
    print(machine())
    print(table("A cheaper teacher", rows(int(sys.argv[1]) if len(sys.argv) > 1 else 3)))
