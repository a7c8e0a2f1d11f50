"""Numbers as people read them: 25.6 M parameters, 4.09 GFLOPs, 97.8 MB, 2 h 05 min."""

from __future__ import annotations

import math
import re
from typing import Any

MISSING = "-"

METRIC_WORDS = {
    "cross_entropy": "cross-entropy, nats",
    "calibration_error": "calibration error, %",
    "AP": "average precision (AP), %",
    "AP50": "AP at overlap 0.5, %",
    "AP75": "AP at overlap 0.75, %",
    "APs": "AP of small objects, %",
    "APm": "AP of medium objects, %",
    "APl": "AP of large objects, %",
    "distill_loss": "distillation loss",
    "explained_variance": "explained variance of the teacher's features",
    "agreement": "same class as the teacher, %",
    "probe_top1": "linear probe, top-1 accuracy, %",
    "knn_top1": "nearest neighbours, top-1 accuracy, %",
    "same_top1": "same class as the student, %",
    "mean_kl": "divergence from the student, nats",
}


def metric_words(name: str) -> str:
    """`top-1 accuracy, %`: a metric by the words that people use; of one's own metric its name."""
    base, dot, part = name.partition(".")
    if dot:
        return f"{metric_words(base)}: {part}"
    if name in METRIC_WORDS:
        return METRIC_WORDS[name]
    if head := re.fullmatch(r"(head\d+)_(.+)", name):
        return f"{head[1]}: {metric_words(head[2])}"
    if shot := re.fullmatch(r"(many|median|low)_shot_acc_(top\d+)", name):
        images = {"many": "many", "median": "a middling number of", "low": "few"}[shot[1]]
        return f"{metric_words(shot[2])}, classes with {images} images"
    if top := re.fullmatch(r"top(\d+)", name):
        return f"top-{top[1]} accuracy, %"
    return name.replace("_", " ")


def count(number: int | None) -> str:
    """`1,797`, `25.6 M`: a count, in full below ten thousand; decimal steps."""
    if number is None:
        return MISSING
    return f"{number:,}" if abs(number) < 10_000 else _scaled(number, ("", " k", " M", " G", " T"))


def counted(number: int, thing: str) -> str:
    """A count with its noun: `1 trial`, `1,200 trials`."""
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def flops(number: int | None) -> str:
    """`4.09 GFLOPs`: floating point operations; decimal steps."""
    if number is None:
        return MISSING
    return _scaled(number, (" FLOPs", " kFLOPs", " MFLOPs", " GFLOPs", " TFLOPs"))


def size(number_bytes: int | None) -> str:
    """`97.8 MB`: a file's size; decimal steps."""
    return MISSING if number_bytes is None else _scaled(number_bytes, (" B", " kB", " MB", " GB", " TB"))


def measure(value: float) -> str:
    """`0.4120`, `97.50`, `3.000e-07`: a metric or a loss; an exponent below 1e-4 and from a million on."""
    if not math.isfinite(value):
        return str(value)
    magnitude = abs(value)
    if magnitude and (magnitude < 1e-4 or magnitude >= 1e6):
        return f"{value:.3e}"
    return f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    """To how many decimals a metric or a loss is shown, and what is said beside it."""
    return 4 if abs(value) < 10 else 2


def difference(left: float, right: float) -> str:
    """`+1.25`: left - right with its sign, to as many decimals as `measure` shows of the two."""
    value = left - right
    if not math.isfinite(value):
        return str(value)
    return f"{value:+.{decimals(max(left, right, key=abs))}f}"


def rate(value: float) -> str:
    """`0.05`, `1e-05`: a learning rate, to four significant digits."""
    return f"{value:.4g}"


def speed(images: float, seconds: float) -> str:
    """`1,234 images/s`: how many images in how many seconds."""
    if seconds <= 0:
        return f"{MISSING} images/s"
    value = images / seconds
    return f"{value:,.0f} images/s" if value >= 10 else f"{value:.2f} images/s"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 07 s`, `2 h 05 min`, `3 d 04 h`: how long something took or will take."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def json_value(value: Any) -> Any:
    """The value for JSON: NaN and infinities become None, in dicts too."""
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scaled(number: int, units: tuple[str, ...]) -> str:
    value, power = float(number), 0
    # 999.5 would print as 1e+03: it belongs to the next unit.
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    text = f"{value:.0f}" if power == 0 or abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
    return text + units[power]
