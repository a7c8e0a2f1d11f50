"""What a loss or method of one's own leaves out or spoils is found before training, by `validate` and by `train`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.check.check import CheckOptions, check
from kdcli.errors import KdError
from kdcli.records import Notice
from kdcli.spec.parse import ParsedSpec
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of

PLUGINS = ("tests",)
OWN = "tests.training.own_parts"
TWO = "mimic.cfgs={a: {type: l2_loss}, b: {type: cosine}}"


def told(parsed: ParsedSpec) -> list[tuple[str, str]]:
    """What `validate` finds wrong; `train` stops at the same."""
    found = [one for one in check(parsed, CheckOptions(plugins=PLUGINS)).findings if one.severity == "error"]
    with pytest.raises(KdError) as caught, run_of(parsed, plugins=PLUGINS, overwrite=True) as run:
        list(train(run))
    assert caught.value.diagnostics[0].code == found[0].code
    assert caught.value.diagnostics[0].message.endswith(
        found[0].message.partition("failed: ")[2] or found[0].message
    )
    return [(one.code, one.message) for one in found]


def test_a_method_that_leaves_a_loss_out() -> None:
    ((code, message),) = told(spec_of(SPEC, TWO, f"mimic.mimic_ins_type={OWN}:OnlyFirst"))
    assert code == "KD437" and ".b` is not computed" in message


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("Twice", "gives `teacher0:loss` twice: one of the two losses would be lost"),
        ("Adds", "gives a loss `own`, and the job has none of that name"),
    ],
)
def test_a_method_whose_losses_are_not_the_jobs(method: str, said: str) -> None:
    ((code, message),) = told(spec_of(SPEC, f"mimic.mimic_ins_type={OWN}:{method}"))
    assert code == "KD437" and said in message


def test_a_loss_that_changes_its_input() -> None:
    ((code, message),) = told(spec_of(SPEC, f"mimic.cfgs.loss={{type: '{OWN}:writing'}}"))
    assert code == "KD437" and "changes its input in place" in message


def test_a_loss_that_is_a_plain_class() -> None:
    ((code, message),) = told(spec_of(SPEC, f"mimic.cfgs.loss={{type: '{OWN}:Plain'}}"))
    assert code == "KD350" and "is no `torch.nn.Module`" in message


@pytest.mark.parametrize("interval", ["mimic.end_iter=3", "mimic.start_iter=2"])
def test_a_step_without_any_loss_is_no_fault_of_kdclis(interval: str) -> None:
    parsed = spec_of(SPEC, "mimic.task_loss=false", interval)
    with pytest.raises(KdError, match="no loss is in force") as caught, run_of(parsed) as run:
        list(train(run))
    assert caught.value.diagnostics[0].code == "KD218"


def test_decay_needs_an_end() -> None:
    for decay in ("mimic.decay=linear", "mimic.cfgs.loss.decay=cosine"):
        with pytest.raises(KdError, match="`decay` needs `end_iter`") as caught:
            spec_of(SPEC, decay)
        assert [one.code for one in caught.value.diagnostics] == ["KD218"]


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        (
            "{name: hints, max_epoch: 1, task_loss: false, train: [model.fc]}",
            "trains no weight of the student",
        ),
        ("{name: hints, max_epoch: 1, task_loss: false, jobs: []}", "has no loss"),
    ],
)
def test_a_stage_in_which_no_weight_of_the_student_learns(stage: str, why: str) -> None:
    """Its adapters alone would learn, and its loss fall."""
    layer = [f"mimic.{side}.mimic_name=[model.layer2]" for side in ("student", "teacher0")]
    stages = f"mimic.stages=[{stage}, {{name: all, max_epoch: 1}}]"
    parsed = spec_of(SPEC, *layer, "mimic.cfgs.loss={type: l2_loss, adapter: {type: conv}}", stages)
    with pytest.raises(KdError, match=f"stage `hints` {why}") as caught, run_of(parsed) as run:
        list(train(run))
    (found,) = caught.value.diagnostics
    assert found.code == "KD700" and found.path == ("mimic", "stages", 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (f"mimic.cfgs.loss={{type: '{OWN}:blind'}}", ["mimic_job0.teacher0.loss"]),
        (f"mimic.cfgs.loss={{type: '{OWN}:noisy'}}", ["mimic_job0.teacher0.loss"]),
        (f"mimic.cfgs.loss={{type: '{OWN}:by_label'}}", []),
        (f"mimic.cfgs={{a: {{type: '{OWN}:blind'}}, b: {{type: kd_loss}}}}", ["mimic_job0.teacher0.a"]),
        (f"mimic.mimic_ins_type={OWN}:Blind", ["mimic_job0.teacher0.loss"]),
    ],
)
def test_an_own_loss_that_does_not_read_its_teacher_is_told(change: str, told: list[str]) -> None:
    with run_of(spec_of(SPEC, change), plugins=PLUGINS) as run:
        records = list(train(run))
    found = [one.message for one in records if isinstance(one, Notice) and "KD709" in one.message]
    assert [message.split("`")[1] for message in found] == told


@pytest.mark.parametrize(
    ("cfgs", "told"),
    [
        (
            "{loss: {type: l2_loss}}",
            "`mimic_job0.loss` takes `feat_norm: true, batch_mean: true` from the method",
        ),
        (
            "{loss: {type: l2_loss, kwargs: {feat_norm: false}}}",
            "takes `batch_mean: true` from the method `base`",
        ),
        ("{loss: {type: l2_loss, kwargs: {feat_norm: false, batch_mean: false}}}", ""),
        ("{hint: {type: l2_loss}}", ""),
        ("{loss: {type: cosine}}", ""),
    ],
)
def test_kwargs_that_a_loss_takes_from_its_method_are_told(cfgs: str, told: str) -> None:
    layer = [f"mimic.{side}.mimic_name=[model.layer2]" for side in ("student", "teacher0")]
    with run_of(spec_of(SPEC, *layer, f"mimic.cfgs={cfgs}")) as run:
        found = [
            one.message for one in train(run) if isinstance(one, Notice) and "from the method" in one.message
        ]
    assert [told in message for message in found] == ([True] if told else [])


@pytest.mark.parametrize("listed", [False, True])
def test_a_layer_in_a_plain_list_is_no_part_of_the_student(listed: bool) -> None:
    net = f"net={{name: model, type: '{OWN}:Hidden', kwargs: {{listed: {str(listed).lower()}}}}}"
    with run_of(spec_of(SPEC, net), plugins=PLUGINS) as run:
        if listed:
            assert list(train(run))
            return
        with pytest.raises(KdError, match=r"KD736: .* 2 parameters .* \(\[8(, 8)?\], "):
            list(train(run))


@pytest.mark.parametrize("listed", [False, True])
def test_validate_sees_a_layer_in_a_plain_list(listed: bool) -> None:
    net = f"net={{name: model, type: '{OWN}:Hidden', kwargs: {{listed: {str(listed).lower()}}}}}"
    found = check(spec_of(SPEC, net), CheckOptions(plugins=PLUGINS)).findings
    assert [one.code for one in found if one.severity == "error"] == ([] if listed else ["KD736"])


def test_other_code_of_a_plugin_is_no_resume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    (folder / "mylab_of_tests.py").write_text(LOSS.format(1))
    text = spec_of(
        SPEC, "mimic.cfgs.loss={type: 'mylab_of_tests:loss'}", "saver.save_dir=r", "trainer.max_epoch=1"
    )
    plugins = ("mylab_of_tests",)
    with run_of(text, plugins=plugins) as run:
        list(train(run))
    longer = spec_of(
        SPEC, "mimic.cfgs.loss={type: 'mylab_of_tests:loss'}", "saver.save_dir=r", "trainer.max_epoch=2"
    )
    (folder / "mylab_of_tests.py").write_text(LOSS.format(100))
    with (
        run_of(longer, plugins=plugins, resume=True) as run,
        pytest.raises(KdError, match=r"KD735.*`mylab_of_tests`"),
    ):
        list(train(run))
    with run_of(longer, plugins=plugins, resume=True, allow_changed=("code.mylab_of_tests",)) as run:
        assert list(train(run))
    with run_of(longer, plugins=plugins, resume=True) as run:  # it is the code of this run now
        assert list(train(run))


LOSS = """
def loss(student, teacher):
    return {} * (student - teacher).square().mean()
"""
