"""What a run was of, in words: networks, method, data; and in what two runs are not the same experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcli.errors import RunError
from kdcli.records import Comparison
from kdcli.report.quantities import metric_words
from kdcli.report.recorded_run import RecordedRun, read_run
from kdcli.report.report_data import REPORT_DATA, read_report_data
from kdcli.spec.text.nodes import leaves

NOT_DATA = ("transformer", "image_reader", "evaluator")
"""Arguments of a dataset that say how its samples are read, not which they are."""

IMPLIED = ("num_classes", "in_channels", "out_layers", "out_strides")
"""Arguments of a network that say what it is attached to, not what it is."""

SHOWN = 4
"""At most so many arguments of a network or a dataset are named."""


def facts_of(run: RecordedRun) -> list[tuple[str, str]]:
    """Who taught whom, how and on which data, as names with values; what the run does not say is left out."""
    runtime, env = _mapping(run.spec.get("runtime")), run.env
    modules = teachers_of(run.spec)
    device = " ".join(str(env[key]) for key in ("device", "device_name") if env.get(key))
    processes = env.get("processes")
    device += f", {processes} processes" if isinstance(processes, int) and processes > 1 else ""
    versions = [f"{name} {env[name]}" for name in ("kdcli", "torch") if env.get(name)]
    facts = [
        ("student", network_words(run.spec.get("net"))),
        *((name, network_words(net)) for name, net in modules.items()),
        ("weights", ", ".join(_weights(run.spec.get("mimic"), list(modules)))),
        ("method", "; ".join(method_words(run.spec))),
        ("training data", data_words(run, "train")),
        ("test data", data_words(run, "test")),
        ("steps", _steps(run)),
        ("optimizer", _optimizer(run.spec)),
        ("seed", "" if runtime.get("random_seed") is None else str(runtime["random_seed"])),
        ("device", device),
        ("versions", " · ".join(versions)),
    ]
    return [(name, value) for name, value in facts if value]


def teachers_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The lists of modules of a resolved spec's teachers, by name; empty for a run without distilling."""
    if not method_words(spec):
        return {}
    return {
        key: value
        for key, value in spec.items()
        if key.startswith("teacher") and any("type" in module for module in _modules(value))
    }


def network_words(net: Any) -> str:
    """`resnet18 (width 16), FPN, RetinaHead`: the types of a network's modules, those that only decode left out."""
    modules = [module for module in _modules(net) if "type" in module]
    shown = [module for module in modules if "post" not in str(module["type"])] or modules
    first = [_with_arguments(module) for module in shown[:1]]
    return ", ".join([*first, *(str(module["type"]) for module in shown[1:])])


def method_words(spec: Mapping[str, Any]) -> list[str]:
    """`l2_loss on model.layer2, model.layer3`: the losses of each job; empty where the student learns alone."""
    runner = _mapping(_mapping(spec.get("runtime")).get("runner"))
    if runner.get("type") == "base":
        return []
    return list(dict.fromkeys(_jobs(spec.get("mimic"))))


def data_words(run: RecordedRun, side: str) -> str:
    """`digits (split train), 1,347 images, 10 classes`: one side of the data."""
    dataset = _mapping(_mapping(_mapping(run.spec.get("dataset")).get(side)).get("dataset"))
    known = _mapping(run.data.get(side))
    words = [_with_arguments(dataset, NOT_DATA)] if dataset.get("type") else []
    if isinstance(known.get("samples"), int):
        words.append(f"{known['samples']:,} images")
    if known.get("classes"):
        words.append(f"{len(known['classes']):,} classes")
    return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which two runs are not the same experiment.

    fatal: whether their figures can't be compared for it.
    """

    what: str
    baseline: str
    other: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.other}" + (f", not {self.baseline}" if self.baseline else "")


def differences(baseline: RecordedRun, other: RecordedRun) -> list[Difference]:
    """In what another run is not the same experiment as the baseline, apart from how the student is taught."""
    found: list[Difference] = []

    def compare(what: str, first: Any, second: Any, words: tuple[str, str], fatal: bool = False) -> None:
        if first != second:
            found.append(Difference(what, *words, fatal=fatal))

    for side, what in (("test", "test data"), ("train", "training data")):
        first, second = baseline.listings.get(side), other.listings.get(side)
        words = (data_words(baseline, side), data_words(other, side))
        if words[0] == words[1]:
            words = ("", f"other samples of {words[1]}" if words[1] else "other samples")
        if first and second:  # what was read, wherever it lay
            compare(what, False, first.isdisjoint(second), words, fatal=side == "test")
        else:
            compare(what, _samples_of(baseline, side), _samples_of(other, side), words, fatal=side == "test")
    metrics = [metric_words(run.primary) if run.primary else "" for run in (baseline, other)]
    if all(metrics):
        compare("metric", metrics[0], metrics[1], (metrics[0], metrics[1]), fatal=True)
    prepared = [_transformer(run.spec) for run in (baseline, other)]
    compare("test images", prepared[0], prepared[1], ("", "prepared in another way"))
    students = [_listed(run.spec.get("net")) for run in (baseline, other)]
    names = [network_words(run.spec.get("net")) for run in (baseline, other)]
    if names[0] == names[1]:
        names = ["", f"{names[1]} with other arguments"]
    compare("student network", students[0], students[1], (names[0], names[1]))
    steps = [_total_steps(run) for run in (baseline, other)]
    compare("steps", steps[0], steps[1], (f"{steps[0]:,}", f"{steps[1]:,}"))
    sizes = [_batch(run.spec) for run in (baseline, other)]
    compare("batch size", sizes[0], sizes[1], (str(sizes[0] or ""), str(sizes[1] or "")))
    return found


def spec_differences(baseline: RecordedRun, spec: Mapping[str, Any]) -> list[Difference]:
    """The same of a resolved spec that is to be run: what its files hold and how long it takes is not known yet."""
    to_run = replace(baseline, path=Path("this run"), spec=spec, data={}, listings={})
    return differences(replace(baseline, data={}, listings={}), to_run)


@dataclass(frozen=True, slots=True)
class BaselineRun:
    """A run that another is compared with. row: of its student, for parameters and sizes, where it is known."""

    run: RecordedRun
    row: Comparison | None
    differs: tuple[Difference, ...]

    @property
    def name(self) -> str:
        """As it stands in the page."""
        return f"baseline {self.run.name}"


def read_baseline(path: Path, run: RecordedRun) -> BaselineRun:
    """The run to compare another with; raises RunError KD855 where their figures can't be compared."""
    baseline = read_run(path)
    differs = differences(baseline, run)
    fatal = [str(one) for one in differs if one.fatal]
    if fatal:
        raise RunError.of(
            "KD855",
            f"{path} is no baseline of {run.path}: {'; '.join(fatal)}",
            "name a run that was measured on the same test data by the same metric",
        )
    data = read_report_data(path / REPORT_DATA)
    row = data.comparison[0] if data.comparison else None
    return BaselineRun(baseline, row, tuple(differs))


KEYS = 6
"""Of more keys in which specs differ those above them are named."""


def changed_keys(baseline: RecordedRun, other: RecordedRun) -> list[str]:
    """Where two resolved specs differ, as the keys that lead there; not where they are saved, nor the seed."""
    first, second = (
        {
            name: repr(value)
            for name, value in leaves(dict(run.spec))
            if not name.startswith("saver.") and name not in ("runtime.random_seed", "saver")
        }
        for run in (baseline, other)
    )
    keys = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    # What one of them has not at all is named once.
    whole = [key for key in (*baseline.spec, *other.spec) if (key in baseline.spec) != (key in other.spec)]
    short = [next((top for top in whole if key == top or key.startswith(f"{top}.")), key) for key in keys]
    short = list(dict.fromkeys(short))
    depth = max((key.count(".") for key in short), default=0)
    while len(short) > KEYS and depth:
        short = list(dict.fromkeys(".".join(key.split(".")[:depth]) for key in short))
        depth -= 1
    return short


def _jobs(mimic: Any) -> Iterator[str]:
    """The losses of each job with the layers they are on; a mapping with `cfgs` is a job."""
    if not isinstance(mimic, Mapping):
        return
    cfgs = mimic.get("cfgs")
    if isinstance(cfgs, Mapping):
        losses = [str(one["type"]) for one in cfgs.values() if isinstance(one, Mapping) and "type" in one]
        method = mimic.get("mimic_ins_type", "base")
        words = " + ".join(losses) or str(method)
        words = words if method in ("base", None) or not losses else f"{method}: {words}"
        layers = _mapping(mimic.get("student")).get("mimic_name") or []
        layers = [layers] if isinstance(layers, str) else [str(layer) for layer in layers]
        if layers:
            more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
            words += f" on {', '.join(layers[:SHOWN])}{more}"
        yield words
        return
    for value in mimic.values():
        yield from _jobs(value)


def _weights(mimic: Any, teachers: Sequence[str]) -> Iterator[str]:
    """Where each teacher's weights came from, each once."""
    seen: set[str] = set()
    waiting = [mimic]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, Mapping):
            for key, inner in value.items():
                weight = _mapping(inner).get("teacher_weight") if key in teachers else None
                if weight and str(weight) not in seen:
                    seen.add(str(weight))
                    yield f"{key}: {weight}" if len(teachers) > 1 else str(weight)
            waiting += value.values()


def _with_arguments(part: Mapping[str, Any], without: Sequence[str] = IMPLIED) -> str:
    """`cifar_resnet8 (widths 2, 2, 4, 8)`: a type with its first plain arguments."""
    shown = []
    for key, value in _mapping(part.get("kwargs")).items():
        plain = isinstance(value, (str, int, float)) or (
            isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value)
        )
        if key not in without and plain and not isinstance(value, bool):
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            shown.append(f"{key} {words}")
    return str(part.get("type", "")) + (f" ({'; '.join(shown[:SHOWN])})" if shown else "")


def _samples_of(run: RecordedRun, side: str) -> Any:
    dataset = _mapping(_mapping(_mapping(run.spec.get("dataset")).get(side)).get("dataset"))
    kwargs = {key: value for key, value in _mapping(dataset.get("kwargs")).items() if key not in NOT_DATA}
    return dataset.get("type"), kwargs


def _transformer(spec: Mapping[str, Any]) -> Any:
    dataset = _mapping(_mapping(_mapping(spec.get("dataset")).get("test")).get("dataset"))
    return _mapping(dataset.get("kwargs")).get("transformer")


def _total_steps(run: RecordedRun) -> int:
    """How many steps the run was to take, or took where it has finished."""
    if run.finished:
        return int(run.finished["step"])
    return int(run.steps.last.get("total_steps", 0)) if run.steps.last else 0


def _batch(spec: Mapping[str, Any]) -> int | None:
    sampler = _mapping(_mapping(_mapping(spec.get("dataset")).get("train")).get("batch_sampler"))
    size = _mapping(sampler.get("kwargs")).get("batch_size")
    return size if isinstance(size, int) else None


def _steps(run: RecordedRun) -> str:
    total, batch = _total_steps(run), _batch(run.spec)
    epochs = _mapping(run.spec.get("trainer")).get("max_epoch")
    words = [f"{total:,}"] if total else []
    words += [f"{epochs} epoch{'' if epochs == 1 else 's'}"] if isinstance(epochs, int) else []
    words += [f"batches of {batch}"] if batch else []
    return ", ".join(words)


def _optimizer(spec: Mapping[str, Any]) -> str:
    optimizer = _mapping(_mapping(spec.get("trainer")).get("optimizer"))
    rate = _mapping(optimizer.get("kwargs")).get("lr")
    return str(optimizer.get("type") or "") + ("" if rate is None else f", learning rate {rate}")


def _modules(net: Any) -> list[Mapping[str, Any]]:
    return [module for module in _listed(net) if isinstance(module, Mapping)]


def _listed(net: Any) -> list[Any]:
    if net is None:
        return []
    return list(net) if isinstance(net, (list, tuple)) else [net]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
