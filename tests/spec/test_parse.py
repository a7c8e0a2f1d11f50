"""The text as a Spec: what is written in several ways, what is given nothing, rules between fields."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from kdcli import waiting as waits
from kdcli.errors import SpecError, UsageError
from kdcli.report.diagnostics import render
from kdcli.spec import parse as module
from kdcli.spec.parse import read
from tests.spec.specs import BASE, changed, findings, good

MIMIC = BASE[BASE.index("mimic:\n") : BASE.index("dataset:\n")]
NET = BASE[BASE.index("net:\n") : BASE.index("teacher0:\n")]


def codes(text: str, *assignments: str) -> list[str]:
    return [one.code for one in findings(text, *assignments)]


def test_the_base_is_clean() -> None:
    assert codes(BASE) == []


def test_teachers_jobs_losses_and_options_are_sorted() -> None:
    spec = good(changed(("    loss:\n", "    levels: [0, 1]\n    loss:\n"))).spec
    assert list(spec.teachers) == ["teacher0"]
    assert spec.mimic is not None
    (name,) = spec.mimic.jobs
    job = spec.mimic.jobs[name]
    assert name == "mimic_job0"
    assert job.options == {"levels": [0, 1]}
    assert job.losses["loss"].type == "kd_loss"
    assert job.teachers["teacher0"].mimic_name == ("head.classifier",)
    assert job.student.mimic_name == ("head.classifier",)


def test_a_teacher_without_a_number_and_a_job_weighting() -> None:
    text = BASE.replace("teacher0", "teacher").replace(
        "  mimic_ins_type: base\n", "  teacher_weighting: entropy\n"
    )
    spec = good(text).spec
    assert list(spec.teachers) == ["teacher"]
    assert spec.mimic is not None
    assert spec.mimic.jobs["mimic_job0"].teacher_weighting == "entropy"


def test_an_anchored_number_is_no_teacher() -> None:
    spec = good(changed(("x-note: anything at all", "teacher_width: &wide 2048"))).spec
    assert list(spec.teachers) == ["teacher0"]


def test_several_jobs() -> None:
    jobs = """\
mimic:
  mimic_as_jobs: true
  task_loss: false
  mimic_job0:
    cfgs: {loss: {type: l2_loss, adapter: auto}}
    teacher0: {mimic_name: backbone.layer4, teacher_weight: a.pth}
    student: {mimic_name: backbone.layer4}
  mimic_job_logits:
    adapter: {type: auto, kwargs: {norm: false}}
    cfgs: {loss: {type: kd_loss, kwargs: {temperature: 2}}}
    teacher0: {mimic_name: [head], teacher_weight: a.pth}
    student: {mimic_name: [head]}
  stages:
    - {name: hints, max_epoch: 2, jobs: [mimic_job0]}
    - {name: all, max_iter: 1e3}

"""
    parsed = good(changed((MIMIC, jobs)))
    mimic = parsed.spec.mimic
    assert mimic is not None
    assert list(mimic.jobs) == ["mimic_job0", "mimic_job_logits"]
    assert mimic.task_loss is False
    first, second = mimic.jobs.values()
    assert first.losses["loss"].adapter is not None
    assert first.losses["loss"].adapter.type == "auto"
    assert first.student.mimic_name == ("backbone.layer4",)
    assert second.adapter is not None
    assert second.adapter.kwargs == {"norm": False}
    assert second.losses["loss"].kwargs == {"T": 2}
    assert [stage.max_iter for stage in mimic.stages] == [None, 1000]
    path = ("mimic", "jobs", "mimic_job_logits", "losses", "loss", "kwargs", "T")
    assert parsed.span(path, on_key=True).excerpt.endswith("kwargs: {temperature: 2}}}")


def test_one_mapping_is_a_whole_model() -> None:
    spec = good(changed((NET, "net: {type: torchvision.resnet18, kwargs: {num_classes: 10}}\n"))).spec
    assert [(m.name, m.type, m.kwargs) for m in spec.net] == [
        ("model", "torchvision.resnet18", {"num_classes": 10})
    ]


def test_a_pseudo_module_needs_no_name() -> None:
    text = changed(
        (
            "  - name: head\n    prev",
            "  - {type: self, kwargs: {freeze_patterns: [backbone]}}\n  - name: head\n    prev",
        )
    )
    assert good(text).spec.net[1].type == "self"
    assert codes(text) == []


def test_train_and_test_share_sampler_and_loader() -> None:
    dataset = good().spec.dataset
    assert dataset.train.batch_sampler == dataset.test.batch_sampler
    assert dataset.train.batch_sampler.kwargs.batch_size == 8


def test_another_type_of_sampler_starts_afresh() -> None:
    text = changed(
        ("  test:\n", "  test:\n    batch_sampler: {type: aspect_ratio_group, kwargs: {batch_size: 2}}\n"),
        ("sampler: {type: dist}", "drop_last: true"),
    )
    assert good(text).spec.dataset.test.batch_sampler.kwargs.drop_last is False


def test_nothing_is_not_given() -> None:
    spec = good(
        changed(("  task_names: kd_cls", "  task_names:\n  random_seed: null"), ("{T: 4.0,", "{T: ~,"))
    ).spec
    assert spec.runtime.task_names is None
    assert spec.runtime.random_seed == 131
    assert spec.mimic is not None
    assert spec.mimic.jobs["mimic_job0"].losses["loss"].kwargs == {"loss_weight": 1.0}
    assert codes(changed((NET, "net:\n"))) == ["KD203"]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("hooks:\n", "traner: &t\n  x: 1\nhooks:\n", "KD613"),
        ("hooks:\n", "hoks:\n", "KD201"),
        ("hooks:\n", "flip: [{type: flip}]\nhooks:\n", "KD201"),
        ("hooks:\n", "flip: {type: flip, size: 3}\nhooks:\n", "KD201"),
        ("hooks:\n", "flip: {type: flip, kwargs: {}}\nhooks:\n", "KD601"),
        ("hooks:\n", "my_teacher: []\nhooks:\n", "KD201"),
        ("hooks:\n", "net: &n []\nhooks:\n", "KD105"),
        ("hooks:\n", "crop: 3\nhooks:\n", "KD105"),
        ("    loss:\n", "    losses: {}\n    loss:\n", "KD319"),
        ("  warm_up_iters: -1\n", "  losses: {}\n", "KD202"),
        ("  warm_up_iters: -1\n", "  warm_up_iters: -2\n", "KD206"),
        ("  warm_up_iters: -1\n", "  warm_up_iter: 2\n", "KD202"),
        ("  warm_up_iters: -1\n", "  temperature: {learned: true, start: 2}\n", ""),
        ("  warm_up_iters: -1\n", "  temperature: {learned: true, stat: 2}\n", "KD202"),
        ("  warm_up_iters: -1\n", "  temperature: hot\n", "KD204"),
        ("  warm_up_iters: -1\n", "  loss_weight: .inf\n", "KD105"),
        ("  loss_weight: 1.0\n", "  loss_weight: .inf\n", "KD223"),
        ("  cfgs:\n    loss:\n", "  cfgs: 3\n  x-loss:\n    loss:\n", "KD204"),
        (
            "    mimic_name: [head.classifier]\n    teacher",
            "    input: {size: big}\n    mimic_name: [head.classifier]\n    teacher",
            "KD204",
        ),
        (
            "    mimic_name: [head.classifier]\n    teacher",
            "    input: {size: [8, 8]}\n    mimic_name: [head.classifier]\n    teacher",
            "",
        ),
        (
            "    mimic_name: [head.classifier]\n    teacher",
            "    input: {size: 8}\n    mimic_name: [head.classifier]\n    teacher",
            "",
        ),
        ("  max_epoch: 10\n", "  max_epoch: 1e1\n", ""),
        ("  max_epoch: 10\n", "  max_epoch: -1.5\n", "KD206"),
        ("  max_epoch: 10\n", "  max_epoch: '10'\n", "KD204"),
        ("  max_epoch: 10\n", "  max_epoch: true\n", "KD204"),
        ("runner: {type: kd}", "runner: {type: kdd}", "KD205"),
        ("runner: {type: kd}", "runner: kd", "KD204"),
        ("dataset:\n  train:\n", "dataset:\n  trian:\n", "KD203"),
        ("  - type: auto_save_best", "  type: auto_save_best", ""),
        ("  - type: auto_save_best", "  - auto_save_best", "KD204"),
    ],
)
def test_changes_of_one_place(old: str, new: str, code: str) -> None:
    found = codes(changed((old, new)))
    assert (code in found) if code else (found == [])


def test_mimic_as_jobs_by_halves() -> None:
    assert "KD213" in codes(changed((MIMIC, "mimic: {mimic_as_jobs: true}\n\n")))
    assert "KD202" in codes(changed(("mimic:\n", "mimic:\n  mimic_as_jobs: true\n")))
    assert "KD204" in codes(changed(("mimic:\n", "mimic:\n  mimic_as_jobs: 1\n")))


def test_base_ignores_what_mimic_says() -> None:
    text = changed(("type: kd}", "type: base}"), ("    teacher_weight: teacher.pth\n", ""))
    parsed = good(text)
    assert not parsed.spec.distils
    assert [one.code for one in parsed.warnings] == ["KD602"]


def test_without_mimic_and_runner_it_is_base() -> None:
    spec = good(changed((MIMIC, ""), ("  runner: {type: kd}\n", ""))).spec
    assert spec.runtime.runner is not None
    assert spec.runtime.runner.type == "base"


def test_stages_say_the_length() -> None:
    stages = ("  student:\n    mimic", "  stages: [{name: a, max_iter: 5}]\n  student:\n    mimic")
    assert codes(changed(stages, ("  max_epoch: 10\n", ""))) == []


def test_errors_and_warnings_come_together_in_the_order_of_the_text() -> None:
    found = findings(
        changed(
            ("x-note: anything at all", "flip: {type: flip}"),
            ("max_epoch: 10", "max_epoch: x"),
            ("hooks:", "hoks:"),
        )
    )
    assert [one.code for one in found] == ["KD601", "KD204", "KD201"]


def test_what_is_not_written_is_shown_at_its_parent() -> None:
    parsed = good()
    assert parsed.span(("trainer", "ema", "kwargs", "decay")).line == 64
    assert (
        parsed.span(("teachers", "teacher0", 1, "kwargs", "num_classes")).excerpt.strip()
        == "kwargs: {num_classes: *classes}"
    )
    assert parsed.span(("net", 9)).line == 9
    assert parsed.span(()).line == 1


def test_the_run_folder_has_the_specs_name() -> None:
    text = changed(("saver:\n  save_dir: runs/it\n", ""))
    assert good(text).spec.saver.save_dir == "runs/cfg"
    assert good(changed(("  save_dir: runs/it", "  auto_resume: true"))).spec.saver.save_dir == "runs/cfg"


def test_reading_a_file_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(BASE)
    parsed = read(file, ["trainer.max_epoch=3"])
    assert (parsed.spec.trainer.max_epoch, parsed.base_dir, parsed.source) == (3, tmp_path, str(file))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BASE.encode())))
    assert read("-").spec.trainer.max_epoch == 10
    for wrong in (tmp_path, tmp_path / "no.yaml", "a\0b"):
        with pytest.raises(UsageError) as caught:
            read(wrong)
        assert caught.value.diagnostics[0].code == "KD001"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError):
        read(file)


def test_a_pipe_is_read_once_its_writer_comes_and_the_wait_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SOON_SECONDS", 0.05)
    monkeypatch.setattr(waits, "TICK_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")

    def late() -> None:
        time.sleep(0.6)
        Path("pipe").write_text(BASE)

    writer = threading.Thread(target=late)
    writer.start()
    parsed = read("pipe")
    writer.join()
    assert parsed.spec == good(BASE).spec.model_copy(update={"saver": parsed.spec.saver})
    assert "waiting for the spec from `pipe`, which is no plain file (" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["/dev/zero", "-"])
def test_no_more_is_read_than_a_spec_can_have(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/zero", "rb") as endless:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(endless))
        with pytest.raises(SpecError) as error:
            read(source)
    assert error.value.diagnostics[0].code == "KD109"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        BASE + "".join(f"key{n}: 1\n" for n in range(20_000)),
        BASE + "".join(f"teachr{n}: 1\n" for n in range(20_000)),
        BASE + "".join(f"teacher{n}: 1\n" for n in range(1, 20_000)),
        BASE.replace(
            "saver:\n  save_dir: runs/it\n",
            "saver: {" + ", ".join(f"key{n}: 1" for n in range(20_000)) + "}\n",
        ),
    ],
)
def test_twenty_thousand_wrong_keys_are_found_in_time_that_grows_with_their_number(text: str) -> None:
    started = time.process_time()
    found = findings(text)
    render(found)
    assert len(found) > 19_000
    # 15 to 40 s where each key was looked up among all others, and without an end on one line.
    assert time.process_time() - started < 12.0


BUDGET = "dataset.train.dataloader.kwargs.bad_sample_budget"


@pytest.mark.parametrize(
    ("text", "budget"),
    [("20", 20), ("0", 0), ("1e3", 1000), ("0.01", 0.01), ("1%", 0.01), ("12.5 %", 0.125), ("0%", 0)],
)
def test_a_budget_of_bad_samples_is_a_number_or_a_share(text: str, budget: float) -> None:
    parsed = good(BASE, f"{BUDGET}={text}")
    found = parsed.spec.dataset.train.dataloader.kwargs.bad_sample_budget
    assert (found, type(found)) == (budget, type(budget))
    assert good(parsed.resolved_yaml()).spec == parsed.spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.5", "KD206: `bad_sample_budget` must be less than 1, got the number 1.5"),
        ("-1", "KD206: `bad_sample_budget` must be at least 0, got the number -1"),
        (
            "many",
            "KD204: `bad_sample_budget` must be a number of samples, or a share of all such as 0.01 or 1%, "
            "got the text 'many'",
        ),
    ],
)
def test_what_is_no_budget_of_bad_samples(text: str, said: str) -> None:
    assert [f"{one.code}: {one.message}" for one in findings(BASE, f"{BUDGET}={text}")] == [said]
