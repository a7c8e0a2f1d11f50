"""The build stage of validate: what it finds, all at once, and what it says would run."""

from __future__ import annotations

import math
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.check.check_cases import CIFAR, checked, codes, told
from tests.training.runs import SPEC

FEATURES = (
    "mimic.cfgs.loss={type: l2_loss}",
    "mimic.student.mimic_name=[model.layer1, model.layer2, model.layer3]",
    "mimic.teacher0.mimic_name=[model.layer1, model.layer2, model.layer3]",
)


def test_a_right_spec_has_a_plan() -> None:
    found = checked()
    assert told(found) == []
    assert found.plan is not None
    plan = found.plan
    assert [network.name for network in plan.networks] == ["student", "teacher0"]
    assert all(network.flops and network.parameters for network in plan.networks)
    assert (plan.samples, plan.steps_per_epoch, plan.total_steps) == (40, 5, 10)
    assert plan.effective_lr == 0.05
    assert [pair.student_shape for pair in plan.pairs] == ["[B, 4]"]


def test_flops_are_those_of_the_layers() -> None:
    found = checked()
    assert found.plan is not None
    widths, size, work = (2, 2, 4, 4), 8, 8 * 8 * 9 * 1 * 2
    for before, after, side in ((2, 2, 8), (2, 4, 4), (4, 4, 2)):
        work += side * side * 9 * (before * after + after * after)
        work += side * side * before * after if side < size else 0
    assert found.plan.networks[0].flops == 2 * (work + widths[-1] * 4)


def test_a_teacher_runs_as_far_as_it_is_needed() -> None:
    found = checked(*FEATURES, "mimic.adapter=auto")
    assert found.plan is not None
    assert found.plan.networks[1].runs_until == "model.layer3"
    assert found.plan.networks[0].runs_until is None


def test_images_that_are_too_small_for_a_network_are_told_with_their_size() -> None:
    big = "{name: model, type: torchvision.squeezenet1_1, kwargs: {num_classes: 4}}"
    three = ("dataset.train.dataset.kwargs.shape=[3, 8, 8]", "teacher0.model.kwargs.in_channels=3")
    found = checked(f"net={big}", *three)
    (one,) = found.findings
    assert one.code == "KD418"
    assert "images of 8x8 may be too small for the network" in (one.help or "")
    channels = checked("net.model.kwargs.in_channels=3")
    assert ["too small" in (one.help or "") for one in channels.findings] == [False]


def test_every_wrong_layer_is_told_with_the_nearest() -> None:
    found = checked(
        "mimic.student.mimic_name=[model.layr3, model.layer2, model.layr1, model.layer1.0.downsampl]",
        "mimic.teacher0.mimic_name=[model.nothing, model.layer2, logit, model.layer1]",
    )
    assert [code for code, _ in told(found)] == ["KD422"] * 5
    by_name = {one.message.split("`")[1]: one.help or "" for one in found.findings}
    assert "model.layer3" in by_name["model.layr3"]
    assert "`model.layer1`" in by_name["model.layr1"]
    assert "`logits`" in by_name["logit"]
    assert {one.span.source for one in found.findings if one.span} == {"argument 1", "argument 2"}
    assert found.plan is None


def test_a_shape_mismatch_shows_both_and_the_adapter_that_mends_it() -> None:
    found = checked(*FEATURES)
    assert [code for code, _ in told(found)] == ["KD430", "KD430"]
    one = found.findings[0]
    assert "[B, 2, 8, 8]" in one.message and "[B, 4, 8, 8]" in one.message
    assert "[B, 4, 2, 2]" in found.findings[1].message and "[B, 8, 2, 2]" in found.findings[1].message
    line = (one.help or "").split("\n")[1]
    mended = checked(*FEATURES, "mimic." + line.replace(": ", "="))
    assert told(mended) == []
    assert mended.plan is not None
    assert [bool(pair.adapter) for pair in mended.plan.pairs] == [True, False, True]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("net.model.kwargs.num_classes=3", "KD419"),
        ("teacher0.model.kwargs.num_classes=5", "KD470"),
        ("net.model.kwargs.in_channels=3", "KD418"),
        ("net.model.kwargs.widths=[2, 2]", "KD402"),
        ("mimic.student.mimic_name=['model..layer3 x']", "KD420"),
        ("mimic.student.mimic_name=['logits[3]']", "KD423"),
        ("trainer.optimizer.kwargs={lr: fast}", "KD322"),
        ("trainer.optimizer.kwargs={lr: 0.1, momentums: 1}", "KD320"),
        ("trainer.optimizer.kwargs={lr: -1.0}", "KD328"),
        ("trainer.lr_scheduler.kwargs={T_mx: 2}", "KD320"),
        ("trainer.lr_scheduler.kwargs={}", "KD321"),
        ("dataset.train.dataset.kwargs.transformer=[{type: torchvision.Nope}]", "KD503"),
        ("dataset.train.dataset.kwargs.transformer=[{type: torch_random_crop, kwargs: {size: -1}}]", "KD505"),
        ("mimic.stages=[{name: one, max_epoch: 1, train: [model.nope]}]", "KD447"),
        ("mimic.teacher0.input={mean: [0.5], std: [0.5]}", "KD436"),
    ],
)
def test_each_slip_has_its_code(change: str, code: str) -> None:
    assert code in codes(change)


def test_parts_that_do_not_depend_on_each_other_are_all_told() -> None:
    found = codes(
        "mimic.student.mimic_name=[model.layr3]",
        "trainer.optimizer.kwargs={lr: fast}",
        "trainer.lr_scheduler.kwargs={T_mx: 2}",
        "dataset.test.dataset.kwargs.transformer=[{type: torchvision.Resize, kwargs: {sizes: 3}}]",
    )
    assert {"KD422", "KD322", "KD320", "KD504"} <= set(found)


def test_a_misspelt_argument_is_not_told_as_a_missing_one_too() -> None:
    assert codes("trainer.lr_scheduler.kwargs={T_mx: 2}") == ["KD320"]
    assert set(codes("trainer.lr_scheduler.kwargs={gamma: 2}")) == {"KD320", "KD321"}


def test_logits_of_other_widths_want_the_datas_classes() -> None:
    found = checked("teacher0.model.kwargs.num_classes=5")
    assert [code for code, _ in told(found)] == ["KD470"]
    assert "`classes: [...]`, 4 of its 5 numbers" in (found.findings[0].help or "")
    assert "adapter" not in (found.findings[0].help or "")
    narrow = checked("net.model.kwargs.num_classes=3")
    (logits,) = (one for one in narrow.findings if one.code == "KD470")
    assert logits.help == "teacher0 knows the data's 4 classes: give the student `num_classes: 4`"


@pytest.mark.parametrize(
    ("change", "marked"),
    [
        ("trainer.lr_scheduler.warmup_iter=10", "argument 1"),
        ("mimic.warm_up_iters=10", "argument 1"),
        (
            "mimic.stages=[{name: one, max_epoch: 1, lr_scheduler: {type: StepLR, warmup_iter: 5}}]",
            "argument 1",
        ),
    ],
)
def test_a_warm_up_longer_than_the_training(change: str, marked: str) -> None:
    found = checked(change)
    assert ("KD608", "warning") in [(one.code, one.severity) for one in found.findings]
    (one,) = [one for one in found.findings if one.code == "KD608"]
    assert one.span is not None and one.span.source == marked


def test_a_warm_up_that_ends_in_time() -> None:
    warm_up = ("trainer.lr_scheduler.warmup_iter=9", "trainer.lr_scheduler.warmup_ratio=0.1")
    assert codes(*warm_up, "mimic.warm_up_iters=9") == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("{warmup_iter: 3}", ["KD649"]),
        ("{warmup_epochs: 1}", ["KD649"]),
        ("{warmup_iter: 3, warmup_type: constant}", ["KD649"]),
        ("{warmup_iter: 3, warmup_ratio: 0.5}", []),
        ("{warmup_iter: 1}", []),
        ("{warmup_iter: 3, warmup_register_type: base}", []),
    ],
)
def test_a_warm_up_that_is_none(change: str, found: list[str]) -> None:
    told = f"{change[:-1]}, {NO_SCALE}" if "register" not in change else f"{change[:-1]}, {LATER}"
    assert codes(f"trainer.lr_scheduler={told}", "trainer.optimizer.kwargs.lr=0.001") == found


LATER = "type: StepLR, kwargs: {step_size: 9}}"
NO_SCALE = f"warmup_register_type: no_scale_lr, {LATER}"


@pytest.mark.parametrize(
    ("pconfig", "found"),
    [
        ("{nodecay: [bias]}", []),
        ("{nodecay: [ndim_is1]}", []),
        ("{nodecay: [nrom, bias]}", ["KD650"]),
        ("{ln_w: {type: weight, kwargs: {weight_decay: 0.0}}}", ["KD650"]),
        ("{bn_w: {type: weight, kwargs: {weight_decay: 0.0}}}", []),
        ("{bn_w: {type: weight, kwargs: {wd: 0.0}}}", ["KD320"]),
    ],
)
def test_what_of_pconfig_changes_nothing_is_told(pconfig: str, found: list[str]) -> None:
    assert codes(f"trainer.optimizer.pconfig={pconfig}") == found


JOBS = (
    "mimic={mimic_as_jobs: true, mimic_job0: {cfgs: {a: {type: kd_loss, kwargs: {T: 2}}, b: {type: l2_loss}},"
    " teacher0: &t {mimic_name: [logits], allow_random: true}, student: &s {mimic_name: [logits]}},"
    " mimic_job1: {cfgs: {c: {type: kd_loss, kwargs: {T: 2}}}, teacher0: *t, student: *s}}"
)
ONE_EACH = "mimic.stages=[{name: one, max_epoch: 1}, {name: two, max_epoch: 1}]"
FOUR = ("trainer.max_iter=4", "trainer.max_epoch=null", "trainer.lr_scheduler=null")
LATE = "begins at iteration 10, after the training, which has 10:"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], {}),
        (["mimic.mimic_job0.start_iter=9"], {}),
        (["mimic.mimic_job0.start_iter=10"], {"KD647": LATE}),
        (["mimic.mimic_job0.cfgs.b.start_iter=10"], {"KD647": LATE}),
        (
            ["mimic.mimic_job1.start_iter=4", *FOUR],
            {"KD647": "at iteration 4, after the training, which has 4:"},
        ),
        (
            ["mimic.mimic_job1.warm_up_iters=4", *FOUR],
            {"KD608": "ends at iteration 4, the training at 4"},
        ),
        (
            ["mimic.stages=[{name: one, max_epoch: 2, jobs: [mimic_job0]}]"],
            {"KD647": "no stage names the job `mimic_job1`"},
        ),
        ([ONE_EACH, "mimic.mimic_job1.start_iter=4"], {}),
        (
            [ONE_EACH, "mimic.mimic_job1.start_iter=5"],
            {"KD647": "after every stage that it is in, the longest has 5:"},
        ),
        (
            [
                "mimic.stages=[{name: one, max_epoch: 1, jobs: [mimic_job0]}, {name: two, max_epoch: 1}]",
                "mimic.mimic_job1.start_iter=7",
            ],
            {"KD647": "at iteration 7, after its stage, which has 5:"},
        ),
    ],
)
def test_a_loss_that_no_step_has(changes: list[str], said: dict[str, str]) -> None:
    """An epoch of the data has 5 steps, the training 2 epochs."""
    found = checked(JOBS, *changes).findings
    assert {one.code for one in found} == set(said), found
    for one in found:
        assert said[one.code] in one.message and one.severity == "warning"


SHIFTED = (
    "{type: CosineAnnealingLR, warmup_iter: %d, warmup_register_type: no_scale_lr, warmup_ratio: 0.1,"
    " kwargs: {T_max: 2, warmup_iter: %d}}"
)


@pytest.mark.parametrize(("shift", "found"), [(9, []), (10, ["KD443"])])
@pytest.mark.parametrize(
    "place",
    ["trainer.lr_scheduler=%s", "mimic.stages=[{name: one, max_iter: 99, lr_scheduler: %s}]"],
)
def test_a_cosine_begins_before_its_end(place: str, shift: int, found: list[str]) -> None:
    change = place % (SHIFTED % (shift, shift))
    result = checked(change)  # 5 steps an epoch
    wrong = [one for one in result.findings if one.code != "KD608"]
    assert [one.code for one in wrong] == found
    for one in wrong:
        assert one.span is not None and change[one.span.column - 1 :].startswith("10}}")


def test_where_an_epoch_of_unknown_length_ends_is_not_guessed() -> None:
    fake = (
        "type: fake\n      kwargs:\n        num_samples: 40\n        num_classes: 4\n        shape: [1, 8, 8]"
    )
    reader = "image_reader: {type: fs_pillow, kwargs: {color_mode: GRAY}}"
    listed = f"type: cls\n      kwargs:\n        meta_file: nowhere.txt\n        {reader}"
    text = SPEC.replace(fake, listed)
    assert "nowhere.txt" in text
    found = checked("trainer.lr_scheduler=" + SHIFTED % (2500, 2500), text=text)
    assert found.plan is not None and found.plan.steps_per_epoch is None
    assert "KD443" not in [one.code for one in found.findings]
    found = checked("trainer.lr_scheduler=" + SHIFTED % (0, -1), text=text)
    assert "KD328" in [one.code for one in found.findings]


def test_a_dataset_that_torchvision_lacks() -> None:
    change = "dataset.train.dataset={type: torchvision.CIFAR10, kwargs: {rot: data, transformer: [{type: to_tensor}]}}"
    assert "KD505" in codes(change)


def test_more_logits_than_classes_is_a_warning() -> None:
    found = checked("net.model.kwargs.num_classes=6", "teacher0.model.kwargs.num_classes=6")
    assert [(one.code, one.severity) for one in found.findings] == [("KD419", "warning")]
    assert found.plan is not None


def test_the_size_of_images_may_be_unknown() -> None:
    text = SPEC.replace(
        "torch_random_crop, kwargs: {size: 8, padding: 1}",
        "torchvision.RandomResize, kwargs: {min_size: 8, max_size: 12}",
    )
    found = checked(text=text)
    assert [(one.code, one.severity) for one in found.findings] == [("KD620", "warning")]


def test_base_trains_alone() -> None:
    found = checked("runtime.runner.type=base")
    assert told(found) == []
    assert found.plan is not None and found.plan.pairs == ()
    assert [network.name for network in found.plan.networks] == ["student"]


def test_the_lr_is_scaled_by_the_batch_unless_told_otherwise() -> None:
    found = checked("trainer.lr_scheduler.warmup_register_type=base")
    assert found.plan is not None and math.isclose(found.plan.effective_lr, 0.05 * 8)


def test_unknown_numbers_of_samples() -> None:
    text = (
        SPEC.replace(
            "type: fake\n      kwargs:\n        num_samples: 40\n        num_classes: 4\n"
            "        shape: [1, 8, 8]",
            "type: image_folder\n      kwargs:\n        root: nowhere",
        )
        .replace("{size: 8, padding: 1}", "{size: 8}")
        .replace("- {type: to_tensor}", "- {type: grayscale}\n          - {type: to_tensor}", 1)
    )
    found = checked(text=text)
    assert told(found) == []
    assert found.plan is not None
    assert found.plan.samples is None and found.plan.total_steps is None


def test_nothing_real_is_left_and_the_generator_is_untouched() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    checked()
    assert torch.equal(torch.random.get_rng_state(), before)


MODULE = '''
import torch
from torch import nn


class Odd(nn.Module):
    """A network with a list, a branch that never runs, and a layer changed in place."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.shared = nn.Conv2d(width, width, 1)
        self.unused = nn.Linear(width, 3)
        self.fc = nn.Linear(width, 4)

    def forward(self, image):
        x = self.act(self.bn(self.stem(image)))
        for block in self.blocks:
            x = self.shared(block(x))
        return self.fc(x.mean((2, 3)))


class Reads(Odd):
    """Needs values: no fake tensor gets through."""

    def forward(self, image):
        result = super().forward(image)
        return result if bool(result.isfinite().all()) else result * 0
'''


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "odd_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_nets", raising=False)
    return "odd_nets"


def own(
    odd: str, student: str, teacher: str = "logits", kind: str = "Odd", loss: str = "l2_loss"
) -> list[str]:
    return codes(
        f"net={{name: model, type: 'odd_nets:{kind}'}}",
        f"mimic.student.mimic_name=[{student}]",
        f"mimic.teacher0.mimic_name=[{teacher}]",
        f"mimic.cfgs.loss={{type: {loss}}}",
        "mimic.adapter=auto",
        plugins=[odd],
    )


def test_a_module_list_is_a_container(odd: str) -> None:
    found = checked(
        "net={name: model, type: 'odd_nets:Odd'}", "mimic.student.mimic_name=[model.blocks]", plugins=[odd]
    )
    assert [code for code, _ in told(found)] == ["KD421"]
    assert "`model.blocks.0`, `model.blocks.1`" in (found.findings[0].help or "")


def test_a_branch_that_never_runs(odd: str) -> None:
    assert own(odd, "model.unused") == ["KD424"]


def test_a_layer_that_runs_twice_pairs_with_lists_alone(odd: str) -> None:
    assert own(odd, "model.shared", "model.layer3") == ["KD431"]
    assert own(odd, "'model.shared[1]'", "model.layer3") == []


def test_a_layer_changed_in_place_can_be_tapped(odd: str) -> None:
    assert own(odd, "model.bn", "model.layer1") == []


def test_code_that_needs_values_is_run_on_real_ones(odd: str) -> None:
    assert own(odd, "model.fc", "model.fc", kind="Reads") == []
    assert own(odd, "model.unused", kind="Reads") == ["KD424"]


def test_a_frozen_student_is_found() -> None:
    assert "KD438" in codes(
        "net=[{name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}},"
        " {type: self, kwargs: {freeze_patterns: [model]}}]"
    )


def test_a_loss_that_cannot_be_computed_is_told_at_its_name() -> None:
    found = checked(
        text=CIFAR + "mimic: {cfgs: {loss: {type: fsp}}, teacher0: {mimic_name: [model.layer1],"
        " allow_random: true}, student: {mimic_name: [model.layer1]}}\n"
    )
    assert found.findings and found.plan is None
    assert all(one.span is not None for one in found.findings)


def test_detection_has_a_sample_of_its_own() -> None:
    from kdcli.tasks.detection.task import BATCH, detection_sample

    batch = detection_sample()
    assert batch["image"].shape[0] == len(batch["boxes"]) == len(batch["image_info"]) == BATCH


def test_findings_do_not_depend_on_the_plugin_being_loaded() -> None:
    text = textwrap.dedent(SPEC)
    assert codes("net={name: model, type: 'odd_nets:Odd'}", text=text) == ["KD413"]
