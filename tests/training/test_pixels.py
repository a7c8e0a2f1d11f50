"""Student and teachers see the same pixels, and nobody changes what another reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.records import Plan
from kdcli.training.run import Run
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of

MIXED = "dataset.train.dataloader.kwargs.batch_fn={type: %s, kwargs: {alpha: 1.0, num_classes: 4}}"


def inputs(run: Run, layer: str = "model.conv1") -> list[tuple[Tensor, Tensor]]:
    """(student's, teacher's) input of the first layer at every step of the run."""
    seen: dict[str, list[Tensor]] = {"student": [], "teacher0": []}
    for record in train(run):
        if isinstance(record, Plan):
            for name, net in (("student", run.student), ("teacher0", run.teachers["teacher0"].net)):
                net.get_submodule(layer).register_forward_pre_hook(
                    lambda module, args, name=name: seen[name].append(args[0].clone())
                )
    steps = run.total_steps
    return list(zip(seen["student"][:steps], seen["teacher0"][:steps], strict=True))


@pytest.mark.parametrize("mix", [None, "batch_mixup", "batch_cutmix"])
def test_teacher_and_student_see_the_same_pixels(mix: str | None) -> None:
    changes = [] if mix is None else [MIXED % mix]
    with run_of(spec_of(SPEC, "trainer.max_iter=3", *changes)) as run:
        pairs = inputs(run)
    assert len(pairs) == 3
    assert all(torch.equal(student, teacher) for student, teacher in pairs)


def test_mixed_targets_reach_the_task_loss() -> None:
    with run_of(spec_of(SPEC, MIXED % "batch_mixup")) as run:
        run.trainee.train()
        batch = dict(next(run.train_loader.batches(0)))
        view = run.teachers["teacher0"].view(batch)
        losses = run.trainee(batch, {"teacher0": view}, StepInfo())
        with torch.no_grad():
            logits = run.trainee.view(batch).features["logits"]
    assert isinstance(logits, Tensor)
    mixed = batch["mixed_labels"]
    assert ((mixed > 0).sum(1) == 2).any()
    by_hand = -(mixed * F.log_softmax(logits, 1)).sum(1).mean()
    assert losses["task.loss"].item() == pytest.approx(by_hand.item(), rel=1e-4)


NORMALISED = SPEC.replace(
    "- {type: to_tensor}",
    "- {type: to_tensor}\n          - {type: normalize, kwargs: {mean: [0.3], std: [0.5]}}",
)


def test_a_teacher_with_other_pixels_gets_them_from_the_same_image() -> None:
    own = "mimic.teacher0.input={size: [16, 16], mean: [0.1], std: [0.25]}"
    with run_of(spec_of(NORMALISED, own, "trainer.max_iter=2")) as run:
        pairs = inputs(run)
    for student, teacher in pairs:
        pixels = student * 0.5 + 0.3
        assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
        again = (pixels - 0.1) / 0.25
        assert teacher.shape[-2:] == (16, 16)
        bigger = F.interpolate(again, (16, 16), mode="bilinear", align_corners=False, antialias=True)
        assert torch.allclose(teacher, bigger, atol=1e-5)


def test_other_normalisation_needs_to_know_the_students() -> None:
    from kdcli.errors import SpecError

    with pytest.raises(SpecError, match="not normalised") as caught:
        with run_of(spec_of(SPEC, "mimic.teacher0.input={mean: [0.5], std: [0.5]}")):
            pass
    assert caught.value.diagnostics[0].code == "KD436"


LAYERS = ["model.conv1", "model.layer1", "model.layer2.0.bn2", "model.layer3.0:in", "model.layer3"]


def test_a_captured_feature_is_what_the_layer_returned() -> None:
    text = SPEC.replace("kd_loss, kwargs: {T: 2}", "sp").replace("[logits]", f"[{', '.join(LAYERS)}]")
    with run_of(spec_of(text)) as run:
        batch = dict(next(run.train_loader.batches(0)))
        returned: dict[str, Tensor] = {}
        net = run.teachers["teacher0"].net

        def note(tap: str) -> Any:
            def hook(_module: Any, args: Any, output: Any = None) -> None:
                returned[tap] = (args[0] if tap.endswith(":in") else output).clone()

            return hook

        handles = []
        for tap in LAYERS:
            layer = net.get_submodule(tap.split(":")[0])
            register = layer.register_forward_pre_hook if tap.endswith(":in") else layer.register_forward_hook
            handles.append(register(note(tap), prepend=True))
        view = run.teachers["teacher0"].view(batch)
        for handle in handles:
            handle.remove()
    for tap in LAYERS:
        feature = view.features[tap]
        assert isinstance(feature, Tensor) and torch.equal(feature, returned[tap]), tap
