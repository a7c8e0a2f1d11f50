"""The training loop on a pretend CUDA device: no operation mixes devices, and no step waits for the device."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from kdcli.losses import LOSSES
from kdcli.parallel.devices import Copies
from kdcli.parallel.distributed import Processes
from kdcli.records import Notice, Plan, Step
from kdcli.spec.parse import parse
from kdcli.spec.places import Places
from kdcli.spec.schema import OptimizerSpec
from kdcli.spec.text.overrides import parse_assignment
from kdcli.training import first_step
from kdcli.training import train as training
from kdcli.training.build import built
from kdcli.training.optim import build_optimizer
from kdcli.training.run import RunOptions
from tests.benchmarks.methods import LEFT_OUT, MUTUAL, VARIANTS, Budget, spec_of
from tests.distill.methods import METHODS
from tests.parallel.pretend_cuda import CUDA, Event, Stream, Watched, pretend_cuda
from tests.scenes import on_scenes, random_teacher, write_scenes

SAMPLES = Path(__file__).parents[2] / "sample_configs"
STEPS = 4

PHASES = ("prove_losses", "prove_teachers", "prove_first_step", "evaluate", "run_state", "save_student")
"""Parts of a run beside its steps, which may wait."""


@dataclass(frozen=True)
class Outcome:
    """What a run on the pretend device showed: the losses of each step, the finds, the notices."""

    losses: list[dict[str, float]]
    watched: Watched
    notices: list[str]
    precision: str


def run(
    spec: dict[str, Any] | str,
    *changes: str,
    resume: bool = False,
    plugins: tuple[str, ...] = (),
    capability: tuple[int, int] = (8, 0),
) -> Outcome:
    """One run of a spec on the pretend device; changes: `dotted.key=value`."""
    text = spec if isinstance(spec, str) else yaml.safe_dump(spec, sort_keys=False)
    loop, losses, notices, precision = training.TrainLoop, [], [], ""
    with ExitStack() as stack:
        watched = stack.enter_context(pretend_cuda(capability=capability))
        parts = [(training, name, name) for name in PHASES]
        proof = [(first_step._FirstStep, name, "prove_first_step") for name in ("before", "after")]
        places: list[tuple[Any, str, str]] = [
            *parts,
            *proof,
            (loop, "step", "step"),
            (training.FiniteCheck, "read", "read"),
        ]
        for owner, name, phase in places:
            function = watched.in_phase(phase, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, function))
        flush = training.LossRecords.flush
        read = watched.in_phase("read", lambda records: list(flush(records)))
        stack.enter_context(
            mock.patch.object(training.LossRecords, "flush", lambda records: iter(read(records)))
        )
        parsed = parse(
            text,
            "spec.yaml",
            overrides=[parse_assignment(c, n) for n, c in enumerate(changes)],
            base_dir=SAMPLES,
        )
        options = RunOptions(overwrite=not resume, resume=resume, places=Places(SAMPLES), plugins=plugins)
        with built(parsed, options, Processes(device=CUDA)) as made:
            with watched.during("between steps"):
                for record in training.train(made):
                    if isinstance(record, Step):
                        losses.append(dict(record.losses))
                    elif isinstance(record, Notice):
                        notices.append(record.message)
                    elif isinstance(record, Plan):
                        precision = record.precision
    return Outcome(losses, watched, notices, precision)


def spec_for(row: str, folder: Path, **trainer: Any) -> dict[str, Any]:
    """A row of the methods table, on made-up images and for a few steps."""
    budget = Budget(
        steps=STEPS, limit=64, test_limit=32, teacher=SAMPLES / "weights/fashion_teacher.safetensors"
    )
    spec = spec_of(row, 1, folder, budget)
    if row == "tfkd_self":
        spec["teacher0"] = yaml.safe_load((SAMPLES / "fashion_kd.yaml").read_text())["teacher0"]
    for key in [key for key in spec if key.startswith("teacher")]:
        for job in (spec["mimic"], *(j for j in spec["mimic"].values() if isinstance(j, dict))):
            if key in job:
                job[key] |= {"teacher_weight": str(budget.teacher), "allow_weak_teacher": True}
    for side, number in (("train", 64), ("test", 32)):
        transformer = spec["dataset"][side]["dataset"]["kwargs"].get("transformer", [])
        images = {"num_samples": number, "shape": [1, 28, 28], "num_classes": 10, "transformer": transformer}
        spec["dataset"][side]["dataset"] = {"type": "fake", "kwargs": images}
    spec["dataset"]["batch_sampler"]["kwargs"]["batch_size"] = 16
    # torch's modes, and so the pretend device, are of one thread: no data worker.
    spec["dataset"]["dataloader"] = {"kwargs": {"pin_memory": True, "num_workers": 0}}
    spec["trainer"] |= {"log_freq": 2, **trainer}
    return spec


def mixes(outcome: Outcome) -> dict[Any, int]:
    return outcome.watched.of("mix", "numpy", "generator", "pageable", "unordered")


def waits(outcome: Outcome) -> dict[Any, int]:
    return outcome.watched.of("wait", phase="step")


FAULTS = {
    "wrong_device": ("mix", "(student - teacher) * torch.ones(student.shape[1])"),
    "waiting": ("wait", "student - teacher if bool((teacher > 0).any()) else student"),
    "number_of_the_host": (
        "wait",
        "(student - teacher).index_put((torch.arange(2, device=student.device),), torch.tensor(0.0))",
    ),
    "gradient_of_trace": ("wait", "student - teacher + 1e-6 * (student @ student.T).trace()"),
    "by_numpy": ("numpy", "student - torch.from_numpy(teacher.detach().numpy().copy())"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretend device can fail: a loss with a fault on purpose trains, and the fault is seen in its steps."""
    kind, expression = FAULTS[fault]
    (tmp_path / f"{fault}.py").write_text(
        "import torch\n"
        "def loss(student, teacher, *, loss_weight: float = 1.0):\n"
        f"    return loss_weight * ({expression}).square().mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = spec_for("kd_loss", tmp_path)
    spec["mimic"]["cfgs"] = {"loss": {"type": f"{fault}:loss"}}
    outcome = run(spec, plugins=(fault,))
    assert outcome.losses and outcome.watched.of(kind, phase="step")


def test_logits_are_distilled_without_a_mix_or_a_wait(tmp_path: Path) -> None:
    outcome = run(spec_for("kd_loss", tmp_path))
    assert len(outcome.losses) == STEPS
    assert mixes(outcome) == {} and waits(outcome) == {}
    defaults = (
        "on pretend: by default `channels_last`, `cudnn_benchmark`, `uint8_images`"
        " (`runtime.<key>: false` switches one off)"
    )
    assert (
        outcome.notices.count(defaults) == 1
        and sum("bf16 several times" in one for one in outcome.notices) == 1
    )
    assert "memory of cuda:0 at its peak: 3.0 GiB in tensors, 4.0 GiB held, of 80 GiB" in outcome.notices
    assert outcome.precision == "fp32"


@pytest.mark.parametrize("fault", ["wait_stream", "record_stream"])
def test_a_copy_that_nobody_waits_for_is_found(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies beside the computing without one of the two words between the streams."""
    with pretend_cuda() as watched:
        owner: Any = Stream if fault == "wait_stream" else torch.Tensor
        monkeypatch.setattr(owner, fault, lambda *_: None)
        moved = Copies(CUDA)({"image": torch.ones(2, 3).pin_memory()})
        assert not watched.of("unordered")
        moved["image"] + 1
        assert watched.of("unordered") and not watched.of("wait", "pageable")


@pytest.mark.parametrize(
    ("name", "kwargs", "fused"),
    [("SGD", {}, True), ("AdamW", {}, True), ("Adagrad", {}, False), ("AdamW", {"fused": False}, False)],
)
def test_optimizers_are_fused_on_the_device(name: str, kwargs: dict[str, Any], fused: bool) -> None:
    with pretend_cuda():
        parameter = torch.nn.Parameter(torch.ones(2, device="cuda"))
        spec = OptimizerSpec(type=name, kwargs={"lr": 0.1, **kwargs})
        made = build_optimizer(spec, [parameter], ("trainer", "optimizer"))
    assert bool(made.param_groups[0]["fused"]) is fused


def test_the_host_is_at_most_one_batch_ahead() -> None:
    """It waits for the beginning of the batch before the last: at the first two for nothing."""
    with pretend_cuda() as watched:
        copies, before = Copies(CUDA), Event.waited
        for _ in range(4):
            copies({"image": torch.ones(2, 3).pin_memory()})["image"] + 1
        assert Event.waited - before == 3 and not watched.of("unordered", "wait", "pageable")
        copies = Copies(CUDA, beside=False)
        copies({"image": torch.ones(2, 3).pin_memory()})
        assert Event.waited - before == 3


@pytest.mark.slow
def test_images_as_bytes_and_other_defaults_train_the_same_losses(tmp_path: Path) -> None:
    off = {"uint8_images": False, "cudnn_benchmark": False}
    spec = spec_for("kd_loss", tmp_path)
    one = run(spec)
    spec["runtime"] |= off
    assert run(spec).losses == one.losses


@pytest.mark.slow
def test_precision_auto_stays_what_it_was(tmp_path: Path) -> None:
    """Begun on a card without bf16, resumed on one with it: fp16, and the steps of the uninterrupted run."""
    spec = spec_for("kd_loss", tmp_path, save_freq=2)
    spec["runtime"]["precision"] = "auto"
    assert run(spec).precision == "bf16"
    whole = run(spec, capability=(7, 0))
    spec["trainer"]["max_iter"] = 2
    first = run(spec, capability=(7, 0))
    spec["trainer"]["max_iter"] = STEPS
    rest = run(spec, resume=True, capability=(8, 0))
    assert (whole.precision, first.precision, rest.precision) == ("fp16", "fp16", "fp16")
    assert first.losses + rest.losses == whole.losses and len(rest.losses) == 2


ROWS = [*(name for name in METHODS if name not in {*LEFT_OUT, "kd_loss"}), *VARIANTS, MUTUAL]
MAY_WAIT: dict[str, str] = {}
"""Methods whose steps wait, and why."""


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_method_neither_mixes_nor_waits(row: str, tmp_path: Path) -> None:
    outcome = run(spec_for(row, tmp_path))
    assert mixes(outcome) == {} and bool(waits(outcome)) is (row in MAY_WAIT)


MODES: dict[str, dict[str, Any]] = {
    "bf16": {"runtime.precision": "bf16"},
    "fp16": {"runtime.precision": "fp16"},
    "channels_last": {"runtime.channels_last": True},
    "fold_bn": {"runtime.fold_bn": True},
    "ema": {"trainer.ema": {"enable": True, "kwargs": {"decay": 0.9}}},
    "clip": {"trainer.clip_grad_norm": 1.0},
    "accumulate": {"trainer.accumulate_steps": 2, "trainer.max_iter": 2},
    "AdamW": {"trainer.optimizer": {"type": "AdamW", "kwargs": {"lr": 0.001}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_neither_mixes_nor_waits(mode: str, tmp_path: Path) -> None:
    spec = spec_for("fitnet", tmp_path)
    for key, value in MODES[mode].items():
        block, _, name = key.partition(".")
        spec[block][name] = value
    outcome = run(spec)
    assert mixes(outcome) == {} and waits(outcome) == {}


@pytest.mark.slow
def test_a_resumed_run_takes_the_same_steps(tmp_path: Path) -> None:
    whole = run(spec_for("fitnet", tmp_path / "whole", save_freq=2))
    spec = spec_for("fitnet", tmp_path / "half", save_freq=2)
    spec["trainer"]["max_iter"] = 2
    first = run(spec)
    spec["trainer"]["max_iter"] = STEPS
    rest = run(spec, resume=True)
    assert first.losses + rest.losses == whole.losses and len(rest.losses) == 2
    assert mixes(rest) == {} and waits(rest) == {}


MOST_WAITS = 8
"""How often a detector's step may wait for the device: for how many boxes there are, not once an image or level."""

DETECTORS: dict[str, tuple[int, list[str]]] = {
    "student": (5, []),
    "retina_student": (1, []),
    "frs": (5, random_teacher()),
    "pkd": (5, random_teacher()),
    "defeat": (5, random_teacher(32)),
    "sample_feature": (8, random_teacher()),
    "retina_kd": (1, random_teacher()),
}
"""For each detector of the samples and each method: how often a step waits, and what makes its teacher small."""


def detector_run(name: str, folder: Path, images: int, *changes: str) -> Outcome:
    """One step of a detector's sample with so many images."""
    text = (SAMPLES / f"scenes_{name}.yaml").read_text()
    scenes = on_scenes(write_scenes(folder, num_train=images))
    if name.startswith("retina"):
        scenes = [change for change in scenes if ".bbox_head." not in change]
    options = [
        "dataset.dataloader.kwargs.pin_memory=true",
        "dataset.dataloader.kwargs.num_workers=0",
        f"dataset.batch_sampler.kwargs.batch_size={images}",
    ]
    return run(text, *scenes, *DETECTORS[name][1], *options, f"saver.save_dir={folder}/run", *changes)


@pytest.mark.parametrize("name", ["student"])
def test_a_detector_waits_for_numbers_of_boxes_alone(name: str, tmp_path: Path) -> None:
    outcome = detector_run(name, tmp_path, 2)
    assert mixes(outcome) == {} and len(outcome.losses) == 1
    assert sum(waits(outcome).values()) == DETECTORS[name][0] <= MOST_WAITS


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_waits_as_often_whatever_the_number_of_images(
    name: str, images: int, tmp_path: Path
) -> None:
    outcome = detector_run(name, tmp_path, images)
    assert mixes(outcome) == {} and len(outcome.losses) == 1
    assert sum(waits(outcome).values()) == DETECTORS[name][0] <= MOST_WAITS


FEW_PROPOSALS = {"rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 100}
WHOLE: dict[str, tuple[int, dict[str, int]]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (6, FEW_PROPOSALS),
    "retinanet_resnet50_fpn": (2, {}),
    "ssdlite320_mobilenet_v3_large": (5, {}),
    "fcos_resnet50_fpn": (3, {}),
}
"""For detectors of torchvision: how often a step waits, whatever the number of images; their arguments."""


def whole_spec(kind: str, folder: Path, images: int = 2) -> dict[str, Any]:
    """A spec of one step of a torchvision detector on so many scenes."""
    sides: dict[str, Any] = {}
    for side in ("train", "test"):
        reader = {"type": "fs_pillow", "kwargs": {"image_dir": f"{folder}/{side}", "color_mode": "RGB"}}
        kwargs: dict[str, Any] = {"meta_file": f"{folder}/{side}.json", "image_reader": reader}
        sides[side] = {
            "dataset": {"type": "coco", "kwargs": {**kwargs, "transformer": [{"type": "to_tensor"}]}}
        }
    truth = {"gt_file": f"{folder}/test.json", "iou_types": ["bbox"]}
    sides["test"]["dataset"]["kwargs"]["evaluator"] = {"type": "COCO", "kwargs": truth}
    sampler = {"sampler": {"type": "dist"}, "batch_size": images, "aspect_grouping": [1]}
    return {
        "runtime": {"task_names": "kd_det", "aligned": True, "runner": {"type": "base"}, "random_seed": 1},
        "net": {
            "name": "model",
            "type": f"torchvision.{kind}",
            "kwargs": {**WHOLE[kind][1], "num_classes": 11},
        },
        "dataset": {
            **sides,
            "batch_sampler": {"type": "aspect_ratio_group", "kwargs": sampler},
            "dataloader": {"type": "base", "kwargs": {"alignment": 32, "pin_memory": True, "num_workers": 0}},
        },
        "saver": {"save_dir": f"{folder}/run"},
        "trainer": {"max_iter": 1, "test_freq": 100, "optimizer": {"type": "SGD", "kwargs": {"lr": 0.001}}},
    }


@pytest.mark.slow
@pytest.mark.parametrize("images", [2, 4])
@pytest.mark.parametrize("kind", WHOLE)
def test_how_often_a_detector_of_torchvision_waits(kind: str, images: int, tmp_path: Path) -> None:
    """For numbers of anchors and boxes of all images at once; torchvision's own code waits for each image and level."""
    write_scenes(tmp_path, num_train=images)
    outcome = run(whole_spec(kind, tmp_path, images))
    assert mixes(outcome) == {} and len(outcome.losses) == 1
    assert sum(waits(outcome).values()) == WHOLE[kind][0] <= MOST_WAITS


def test_the_loss_table_is_covered() -> None:
    assert {*LOSSES} == {*METHODS} and {*ROWS, *LEFT_OUT, "kd_loss"} >= {*METHODS}


def test_a_cpu_tensor_made_on_the_device_says_so() -> None:
    """The device's own rules: what is made of its tensors is its, and a copy back is the host's."""
    with pretend_cuda() as watched:
        there = torch.ones(3, device="cuda")
        assert there.device == CUDA and (there + 1).is_cuda and not there.cpu().is_cuda
        assert not watched.of("mix")
        there + torch.ones(3)
        assert watched.of("mix")
