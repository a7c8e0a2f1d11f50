"""Every `mimic` block that `kdcli methods NAME` prints validates and trains, on the networks that it names."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from kdcli.commands import reference
from kdcli.commands.help_options import MethodsOptions
from kdcli.commands.validate import examine
from kdcli.data.classification.arrays import fake
from kdcli.distill.mimickers import MIMICKERS
from kdcli.losses import LOSSES
from kdcli.models.network import build_network
from kdcli.records import Step
from kdcli.spec.parse import ParsedSpec
from kdcli.training.train import train
from tests.training.detectors import DATA, network
from tests.training.runs import run_of, spec_of

STEPS = 3
QUICK = ("FRS", "Mutual", "bce_loss", "simkd")
"""What the default tests run: each way that a block differs from the others."""

NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in sorted([*LOSSES, *MIMICKERS])
]

FAKE = "num_classes: 100, shape: [3, 8, 8], transformer: [{type: to_tensor}]"
IMAGES = f"""
runtime: {{runner: {{type: kd}}, random_seed: 1}}
dataset:
  train: {{dataset: {{type: fake, kwargs: {{num_samples: 24, {FAKE}}}}}}}
  test: {{dataset: {{type: fake, kwargs: {{num_samples: 8, {FAKE}}}}}}}
  batch_sampler: {{type: base, kwargs: {{batch_size: 8}}}}
trainer: {{max_epoch: 1, optimizer: {{type: SGD, kwargs: {{lr: 0.01}}}}}}
"""
"""As many classes as the networks of the CIFAR table have where nothing else is said."""


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The block that the command prints, from its comment on."""
    reference.methods(MethodsOptions(name=name))
    text = capsys.readouterr().out
    return text[text.index("# for net") :]


def named(block: str) -> dict[str, Any]:
    """The networks in the comment of a block: `# for net: {...} and teacher0: {...}`."""
    comment = block.partition("\n")[0].removeprefix("# for ")
    return {key: value for part in comment.split(" and ") for key, value in yaml.safe_load(part).items()}


def taught(type: str, folder: Path) -> Path:
    """A weights file of a CIFAR ResNet that is right on the training images, or some losses would be 0."""
    file = folder / f"{type}.safetensors"
    if not file.is_file():
        spec = spec_of(f"net: {{name: model, type: {type}}}\n{IMAGES}", "runtime.runner.type=base").spec
        torch.manual_seed(0)
        net = build_network(spec.net, path=()).eval()
        kwargs = spec.dataset.train.dataset.kwargs.model_extra or {}
        data = fake(True, **kwargs)
        seen: list[torch.Tensor] = []
        classifier = net.get_submodule("model.fc")
        assert isinstance(classifier, torch.nn.Linear)
        with torch.no_grad(), classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            net({"image": data.images.float() / 255})
            right = torch.nn.functional.one_hot(torch.as_tensor(data.labels), kwargs["num_classes"]).float()
            classifier.weight.copy_(8 * (torch.linalg.pinv(seen[0]) @ right).T)
            classifier.bias.zero_()
        save_file(net.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def on_images(block: str, made: Path) -> tuple[str, list[str]]:
    """A spec on small images, and what is said on the command line."""
    networks = named(block)
    if "teacher0" not in networks or "teacher0:\n" not in block:
        networks.pop("teacher0", None)
        return yaml.safe_dump(networks) + block + IMAGES, []
    shutil.copy(taught(networks["teacher0"]["type"], made), "teacher0.safetensors")
    return yaml.safe_dump(networks) + block + IMAGES, ["mimic.teacher0.allow_weak_teacher=true"]


def on_scenes(block: str, scenes: Path) -> tuple[str, list[str]]:
    """A spec of small two-stage detectors on scenes."""
    assert block.startswith("# for net and teacher0 of United-Perception's modules, each with `neck`")
    nets = {"net": network(), "teacher0": network(planes=12, width=8)}
    for modules in nets.values():
        (head,) = (module for module in modules if module["name"] == "bbox_head")
        head["kwargs"] = {**head["kwargs"], "num_classes": 11}  # type: ignore[dict-item]
    text = yaml.safe_dump(nets, sort_keys=False) + block + DATA
    torch.manual_seed(0)
    teacher = build_network(spec_of(text).spec.teachers["teacher0"], path=())
    save_file(teacher.state_dict(), Path("teacher0.safetensors"))
    changes = [f"dataset.test.dataset.kwargs.evaluator.kwargs.gt_file={scenes}/test.json"]
    for part in ("train", "test"):
        where = f"dataset.{part}.dataset.kwargs"
        changes += [
            f"{where}.meta_file={scenes}/{part}.json",
            f"{where}.image_reader.kwargs.image_dir={scenes}/{part}",
        ]
    changes.append("dataset.train.dataset.kwargs.transformer.keep_ar_resize.kwargs.scales=[128]")
    return text, [*changes, "mimic.teacher0.allow_weak_teacher=true"]


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_block_validates_and_trains(
    name: str, made: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    block = printed(name, capsys)
    if block.startswith("# for net:"):
        text, changes = on_images(block, made)
    else:
        text, changes = on_scenes(block, request.getfixturevalue("scenes"))
    changes.append(f"trainer.max_iter={STEPS}")
    Path("pasted.yaml").write_text(text)
    found, plan = examine("pasted.yaml", changes)
    assert [f"{one.code}: {one.message}" for one in found if one.severity == "error"] == []
    assert plan is not None
    parsed = spec_of(text, *changes)
    with run_of(parsed) as run:  # the guard, which proves every loss, is the first thing that `train` does
        steps = [record.losses for record in train(run) if isinstance(record, Step)]
    assert len(steps) == STEPS
    for losses in steps:
        for term in declared(parsed):
            values = [value for key, value in losses.items() if key.endswith(f".{term}")]
            assert values and all(math.isfinite(value) and value != 0.0 for value in values), (term, losses)


def declared(parsed: ParsedSpec) -> Mapping[str, Any]:
    """The losses that stand under `cfgs`, or those of the method where none do."""
    assert parsed.spec.mimic is not None
    (job,) = parsed.spec.mimic.jobs.values()
    return job.losses or MIMICKERS[job.mimic_ins_type].losses
