"""Teachers with other classes than the data: what is selected, what is scored, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.analysis.collected import write_report_data
from kdcli.analysis.comparison import compare
from kdcli.check.check import CheckOptions, check
from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.errors import RunError, SpecError
from kdcli.models.weights import read_weights, save_safetensors
from kdcli.parallel.distributed import Processes
from kdcli.records import Comparison, Finished, Notice
from kdcli.report.report_data import read_report_data
from kdcli.spec.parse import ParsedSpec
from kdcli.training.guard import prove_teachers
from kdcli.training.run import Run, RunOptions
from kdcli.training.train import train
from tests.training.runs import SPEC, run_of, spec_of, train_all
from tests.training.test_classes import GREY, lay

PLUGINS = ("tests",)
CPU = Processes(device=torch.device("cpu"))
SIX = "teacher0.model.kwargs.num_classes=6"
CHOSEN = [5, 0, 3, 1]
FEATURES = (
    "mimic.cfgs.loss={type: l2_loss}",
    "mimic.adapter=auto",
    "mimic.student.mimic_name=[model.layer2]",
    "mimic.teacher0={mimic_name: [model.layer2], allow_random: true}",
)

PETS = """
runtime: {runner: {type: kd}, random_seed: 3}
net: {name: model, type: cifar_resnet8, kwargs: {num_classes: 3, in_channels: 1, widths: [2, 2, 4, 4]}}
teacher0: {name: model, type: "tests.training.label_nets:Grey", kwargs: {centres: %s}}
mimic:
  cfgs: {loss: {type: kd_loss, kwargs: {T: 2}}}
  teacher0: {mimic_name: [logits], %s}
  student: {mimic_name: [logits]}
dataset:
  train:
    dataset: {type: image_folder, kwargs: {root: train, color_mode: GRAY, transformer: &t [{type: to_tensor}]}}
  test:
    dataset: {type: image_folder, kwargs: {root: test, color_mode: GRAY, transformer: *t}}
  batch_sampler: {type: base, kwargs: {batch_size: 8}}
trainer: {max_epoch: 1, optimizer: {type: SGD, kwargs: {lr: 0.05}}}
"""
"""Three folders of images, each of its own grey, and a teacher that is always right."""

SHADES = {name: grey / 255 for name, grey in GREY.items()}


def pets(names: list[str], teacher: str = "", *changes: str, stated: bool = True) -> ParsedSpec:
    """A teacher of these classes, whose file states them; those that are no shade of the data lie beyond white."""
    if not Path("train").exists():
        lay(Path("train"), GREY, 8)
        lay(Path("test"), GREY, 8)
    from tests.training.label_nets import Grey

    centres = [SHADES.get(name, 2.0 + number) for number, name in enumerate(names)]
    state = {f"model.{key}": value for key, value in Grey(centres).state_dict().items()}
    metadata = {"class_names": json.dumps(names)} if stated else {}
    save_safetensors(state, Path("teacher.safetensors"), metadata)
    weight = "teacher_weight: teacher.safetensors"
    return spec_of(PETS % ([0.0] * len(names), f"{weight}{', ' if teacher else ''}{teacher}"), *changes)


def raw_logits(run: Run, loader: Any) -> tuple[Tensor, Tensor]:
    """All logits of the teacher's own network, and the labels, over the loader."""
    batches = [dict(batch) for batch in loader.batches(0)]
    with torch.no_grad():
        logits = torch.cat([run.teachers["teacher0"].net(batch)["logits"] for batch in batches])
    return logits, torch.cat([batch["labels"] for batch in batches])


def top1(logits: Tensor, labels: Tensor) -> float:
    return 100.0 * float((logits.argmax(1) == labels).double().mean())


def compared(parsed: ParsedSpec) -> tuple[dict[str, Comparison], list[Notice]]:
    rows, notices = compare(parsed, RunOptions(plugins=PLUGINS), CPU, None)
    return {row.network: row for row in rows}, notices


def codes_of(parsed: ParsedSpec, **options: Any) -> list[str]:
    found = check(parsed, CheckOptions(plugins=PLUGINS, **options)).findings
    return [finding.code for finding in found if finding.severity == "error"]


# Scored, or not


@pytest.mark.parametrize("classes", [1000, 6, 3])
def test_a_teacher_of_other_classes_is_mimicked_by_its_features_and_not_scored(classes: int) -> None:
    parsed = spec_of(SPEC, *FEATURES, f"teacher0.model.kwargs.num_classes={classes}")
    with run_of(parsed) as run:
        measured, told = prove_teachers(run)
        records = list(train(run))
    assert measured == {}
    (notice,) = told
    assert notice.level == "info"
    assert f"teacher0 is not scored on this data: it gives {classes} logits" in notice.message
    assert [r for r in records if isinstance(r, Notice) and "is not scored" in r.message] == [notice]
    finished = next(r for r in records if isinstance(r, Finished))
    assert finished.teachers == {}


def test_a_bad_teacher_of_as_many_classes_is_still_caught() -> None:
    with run_of(spec_of(SPEC, *FEATURES)) as run, pytest.raises(RunError) as caught:
        prove_teachers(run)
    assert caught.value.diagnostics[0].code == "KD703"


@pytest.mark.slow
def test_eval_and_report_leave_its_accuracy_out_and_say_why() -> None:
    with run_of(spec_of(SPEC, SIX, *FEATURES, "saver.save_dir=unused")) as run:
        save_safetensors(run.teachers["teacher0"].net.state_dict(), Path("teacher.safetensors"))
    teacher = "mimic.teacher0={mimic_name: [model.layer2], teacher_weight: teacher.safetensors}"
    parsed = spec_of(SPEC, SIX, *FEATURES, teacher, "trainer.max_epoch=1", "saver.save_dir=run")
    train_all(parsed)
    rows, notices = compared(parsed)
    assert rows["teacher0"].metrics == {} and rows["teacher0"].agreement is None
    assert "top1" in rows["student"].metrics
    assert sum("teacher0 is not scored" in notice.message for notice in notices) == 1
    path, _ = write_report_data(parsed, RunOptions(), torch.device("cpu"))
    data = read_report_data(path)
    assert [row.metrics for row in data.comparison if row.network == "teacher0"] == [{}]
    assert data.reliability is not None and list(data.reliability) == ["student"]


# `classes`


@pytest.mark.parametrize("tap", ["logits", "model.fc"])
@pytest.mark.parametrize("standardize", [False, True])
def test_the_loss_compares_the_selected_logits(tap: str, standardize: bool) -> None:
    parsed = spec_of(
        SPEC,
        SIX,
        f"mimic.teacher0.classes={CHOSEN}",
        f"mimic.teacher0.mimic_name=[{tap}]",
        f"mimic.standardize={str(standardize).lower()}",
    )
    with run_of(parsed) as run:
        batch = dict(next(run.train_loader.batches(0)))
        view = run.teachers["teacher0"].view(batch)
        whole, _ = raw_logits(run, run.train_loader)
        assert whole.shape[1] == 6
        teacher = whole[: len(batch["image"])][:, CHOSEN]
        assert torch.equal(view.features[tap], teacher)
        run.trainee.eval()
        student = run.student(batch)["logits"]
        loss = run.trainee(batch, {"teacher0": view}, StepInfo(), weighted=False)["mimic_job0.teacher0.loss"]
    if standardize:
        teacher, student = (
            (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (teacher, student)
        )
    log_t, log_s = (teacher / 2).log_softmax(1), (student / 2).log_softmax(1)
    expected = 4 * (log_t.exp() * (log_t - log_s)).sum(1).mean().detach()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_the_selected_logits_are_scored_everywhere() -> None:
    names = ["x", "c", "y", "a", "z", "b"]
    parsed = pets(names, "classes: [3, 5, 1]", "saver.save_dir=run", stated=False)
    with run_of(parsed, plugins=PLUGINS) as run:
        measured, told = prove_teachers(run)
        logits, labels = raw_logits(run, run.test_loader)
        records = list(train(run))
    expected = top1(logits[:, [3, 5, 1]], labels)
    assert expected == 100.0 and top1(logits, labels) < 50
    assert measured["teacher0"]["top1"] == expected and told == []
    entropy = F.cross_entropy(logits[:, [3, 5, 1]], labels)
    assert measured["teacher0"]["cross_entropy"] == pytest.approx(float(entropy), rel=1e-5)
    finished = next(r for r in records if isinstance(r, Finished))
    assert finished.teachers["teacher0"]["top1"] == 100.0
    rows, notices = compared(parsed)
    assert rows["teacher0"].metrics["top1"] == 100.0 and rows["teacher0"].agreement is not None
    assert not any("scored" in notice.message for notice in notices)
    path, _ = write_report_data(parsed, RunOptions(plugins=PLUGINS), torch.device("cpu"))
    data = read_report_data(path)
    assert [row.metrics["top1"] for row in data.comparison if row.network == "teacher0"] == [100.0]


def test_a_teacher_whose_classes_are_told_wrongly_is_near_chance() -> None:
    names = ["x", "c", "y", "a", "z", "b"]
    with run_of(pets(names, "classes: [5, 1, 3]", stated=False), plugins=PLUGINS) as run:
        with pytest.raises(RunError) as caught:
            prove_teachers(run)
    assert caught.value.diagnostics[0].code == "KD703"


@pytest.mark.parametrize(
    "said",
    [
        "{a: 3, b: 5, c: 1}",
        "{c: 1, a: 3, b: 5}",
        "{a: alpha, b: beta, c: gamma}",
        "{b: beta, c: 1, a: alpha}",
        "[alpha, beta, gamma]",
        "[3, beta, 1]",
    ],
)
def test_classes_are_said_by_number_or_by_name(said: str) -> None:
    names = ["x", "gamma", "y", "alpha", "z", "beta"]
    parsed = pets(names, f"classes: {said}, allow_weak_teacher: true")
    assert codes_of(parsed) == [] and codes_of(parsed, look="start") == []
    with run_of(parsed, plugins=PLUGINS) as run:
        assert run.teachers["teacher0"].labels.numbers == (3, 5, 1)


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ("[0, 1]", "KD471", "names 2 of the teacher's classes, and the data has 3"),
        ("{a: 0, b: 1}", "KD471", "leaves out `c`"),
        ("{a: 0, b: 1, d: 2, c: 3}", "KD471", "the data has no class `d`"),
        ("[alpha, beta, gama]", "KD472", "teacher0 has no class `gama`"),
        ("[0, 1, 6]", "KD472", "teacher0 has no class 6: it gives 6 logits"),
        ("{a: 0, b: 7, c: 2}", "KD472", "teacher0 has no class 7"),
        ("[alpha, 3, 1]", "KD472", "names class 3 of teacher0 twice"),
    ],
)
def test_what_is_wrong_with_classes_is_told(said: str, code: str, words: str) -> None:
    parsed = pets(["x", "gamma", "y", "alpha", "z", "beta"], f"classes: {said}")
    with pytest.raises(SpecError) as caught, run_of(parsed, plugins=PLUGINS):
        pass
    assert caught.value.diagnostics[0].code == code
    assert words in caught.value.diagnostics[0].message
    found = check(parsed, CheckOptions(plugins=PLUGINS, look="start")).findings
    assert [(f.code, f.message) for f in found if f.severity == "error"] == [
        (d.code, d.message) for d in caught.value.diagnostics
    ]
    if "gama" in said:
        assert caught.value.diagnostics[0].help == "did you mean `gamma`?"


def test_names_that_no_file_states_cannot_be_looked_up() -> None:
    parsed = pets(["x", "c", "y"], "classes: [x, c, y]", stated=False)
    with pytest.raises(SpecError, match="states no names of classes") as caught:
        with run_of(parsed, plugins=PLUGINS):
            pass
    assert caught.value.diagnostics[0].code == "KD472"


def test_classes_of_a_teacher_without_logits_select_nothing() -> None:
    teacher = "{name: backbone, type: resnet_custom, kwargs: {block: basic, layers: [1, 1, 1, 1], width: 4,"
    teacher += " input_channel: 1, normalize: {type: solo_bn}}}"
    parsed = spec_of(
        SPEC,
        *FEATURES[:3],
        f"teacher0=[{teacher}]",
        "mimic.teacher0={mimic_name: [backbone.layer1], allow_random: true, classes: [0, 1, 2, 3]}",
    )
    assert codes_of(parsed) == ["KD472"]


def test_simkd_gives_the_student_the_selected_part_of_the_classifier() -> None:
    parsed = spec_of(
        SPEC,
        SIX,
        "mimic.cfgs.loss={type: simkd}",
        "mimic.task_loss=false",
        "mimic.student.mimic_name=[model.layer3]",
        f"mimic.teacher0={{mimic_name: [model.layer3], allow_random: true, allow_weak_teacher: true,"
        f" classes: {CHOSEN}}}",
        "trainer.max_epoch=1",
        "saver.save_dir=run",
    )
    assert codes_of(parsed) == []
    with run_of(parsed) as run:
        list(train(run))
        fc = run.teachers["teacher0"].net.get_submodule("model.fc")
    saved = read_weights(Path("run/student.safetensors"))
    assert fc.weight.shape[0] == 6
    assert torch.equal(saved["_end.classifier.weight"], fc.weight[CHOSEN])
    assert torch.equal(saved["_end.classifier.bias"], fc.bias[CHOSEN])
    rows, _ = compared(parsed)
    assert "top1" in rows["student"].metrics


def test_a_test_list_that_lacks_the_last_class_changes_nothing() -> None:
    parsed = pets(["a", "b", "c"], stated=False)
    for side, names in (("train", "abc"), ("test", "ab")):
        lines = [f"{name}/{i}.png {'abc'.index(name)}" for name in names for i in range(8)]
        Path(f"{side}.txt").write_text("\n".join(lines) + "\n")
    reader = "{type: fs_pillow, kwargs: {image_dir: %s, color_mode: GRAY}}"
    lists = [
        f"dataset.{side}.dataset={{type: cls, kwargs: {{meta_file: {side}.txt, image_reader: {reader % side},"
        " transformer: [{type: to_tensor}]}}"
        for side in ("train", "test")
    ]
    parsed = pets(["a", "b", "c"], "", *lists, "saver.save_dir=run", stated=False)
    train_all(parsed, plugins=PLUGINS)
    rows, notices = compared(parsed)
    assert rows["teacher0"].metrics["top1"] == 100.0
    assert not any("scored" in notice.message for notice in notices)


def test_eval_tells_of_classes_that_the_teacher_lacks() -> None:
    train_all(
        pets(["x", "c", "y", "a", "z", "b"], "classes: [3, 5, 1]", "saver.save_dir=run"), plugins=PLUGINS
    )
    wrong = pets(["x", "c", "y", "a", "z", "b"], "classes: [3, 5, 6]", "saver.save_dir=run")
    with pytest.raises(SpecError, match="teacher0 has no class 6"):
        compared(wrong)


# The cache


def stored(root: str = "caches") -> list[Path]:
    return sorted(Path(root).glob("teacher0-*"))


def test_a_cache_stores_the_selected_logits_and_knows_them_by_their_classes() -> None:
    changes = ("mimic.teacher0.cache={dir: caches}", SIX)

    def run_with(classes: list[int], name: str) -> tuple[Tensor, Tensor]:
        parsed = spec_of(SPEC, *changes, f"mimic.teacher0.classes={classes}", f"saver.save_dir={name}")
        with run_of(parsed) as run:
            batch = next(run.train_loader.batches(0))
            shown = run.sources["teacher0"].view(batch)
            live = run.teachers["teacher0"].view(batch)
            list(train(run))
        return shown.features["logits"], live.features["logits"]

    first, live = run_with(CHOSEN, "one")
    assert torch.equal(first, live) and first.shape[1] == 4
    assert len(stored()) == 1
    again, _ = run_with(CHOSEN, "two")
    assert len(stored()) == 1 and torch.equal(again, first)
    other, live = run_with(CHOSEN[::-1], "three")
    assert len(stored()) == 2 and torch.equal(other, live) and torch.equal(other, first.flip(1))


# Names that the file states


def test_the_datas_names_in_another_order_are_matched_and_told() -> None:
    parsed = pets(["c", "a", "b"], "", "saver.save_dir=run")
    with run_of(parsed, plugins=PLUGINS) as run:
        assert sum("another order" in notice for notice in run.notices) == 1
        measured, _ = prove_teachers(run)
        logits, labels = raw_logits(run, run.test_loader)
        batch = dict(next(run.train_loader.batches(0)))
        view = run.teachers["teacher0"].view(batch)
        whole = run.teachers["teacher0"].net(batch)["logits"]
        list(train(run))
    assert top1(logits, labels) == 0.0 and measured["teacher0"]["top1"] == 100.0
    assert torch.equal(view.features["logits"], whole[:, [1, 2, 0]])
    rows, notices = compared(parsed)
    assert rows["teacher0"].metrics["top1"] == 100.0
    assert sum("another order" in notice.message for notice in notices) == 1


def test_the_same_names_are_read_as_they_stand() -> None:
    with run_of(pets(["a", "b", "c"]), plugins=PLUGINS) as run:
        assert run.teachers["teacher0"].labels.numbers is None
        assert prove_teachers(run)[0]["teacher0"]["top1"] == 100.0


def test_other_names_are_matched_by_number_and_measured() -> None:
    """Nothing says that `u` is no `a`: what the teacher scores does."""
    with run_of(pets(["u", "v", "w"]), plugins=PLUGINS) as run:
        (notice,) = (notice for notice in run.notices if "by number" in notice)
        with pytest.raises(RunError, match="teacher0 scores top1") as caught:
            prove_teachers(run)
    assert "its classes are others (`u`, `v`, `w`) than the data's (`a`, `b`, `c`)" in notice
    assert caught.value.diagnostics[0].code == "KD703"
    with run_of(pets(["a", "b", "z"], "allow_weak_teacher: true"), plugins=PLUGINS) as run:
        assert prove_teachers(run)[0]["teacher0"]["top1"] == pytest.approx(200 / 3)


def test_a_name_at_another_number_beside_other_names_is_refused() -> None:
    """A class folder that was renamed moves the others: by number, `a` would teach what `z` is."""
    for names, place, hint in (
        (["z", "a", "b"], "`a` is class 1 of it and class 0 of the data", "classes: [1, 2, 0]"),
        (["x", "y", "b"], "`b` is class 2 of it and class 1 of the data", "classes: [?, 2, ?]"),
    ):
        parsed = pets(names)
        with pytest.raises(SpecError) as caught, run_of(parsed, plugins=PLUGINS):
            pass
        (found,) = caught.value.diagnostics
        assert found.code == "KD470" and place in found.message, found
        assert found.help is not None and hint in found.help
        assert codes_of(parsed, look="quick") == ["KD470"]
    with run_of(
        pets(["z", "a", "b"], "classes: [1, 2, 0], allow_weak_teacher: true"), plugins=PLUGINS
    ) as run:
        assert prove_teachers(run)[0]["teacher0"]["top1"] == pytest.approx(200 / 3)


def test_names_of_a_teacher_of_features_alone_are_no_matter() -> None:
    layer = [
        "mimic.teacher0.mimic_name=[model]",
        "mimic.student.mimic_name=[model]",
        "mimic.cfgs.loss={type: l2_loss}",
    ]
    with run_of(pets(["z", "a", "b"], "", *layer), plugins=PLUGINS) as run:
        measured, (notice,) = prove_teachers(run)
    assert measured == {} and "is not scored on this data: its classes are others" in notice.message


def test_names_among_others_are_a_line_to_write() -> None:
    parsed = pets(["x", "c", "y", "a", "z", "b"])
    with pytest.raises(SpecError) as caught, run_of(parsed, plugins=PLUGINS):
        pass
    (found,) = caught.value.diagnostics
    assert found.code == "KD470" and "[B, 3]" in found.message and "[B, 6]" in found.message
    assert found.help is not None and "`classes: [3, 5, 1]`" in found.help


# Adapters and losses between unlike classes


def test_auto_makes_no_classes_of_others() -> None:
    parsed = spec_of(SPEC, SIX, "mimic.adapter=auto")
    with pytest.raises(SpecError) as caught, run_of(parsed):
        pass
    (found,) = caught.value.diagnostics
    assert found.code == "KD470" and found.path == ("mimic", "jobs", "mimic_job0", "adapter")
    assert "[B, 4]" in found.message and "[B, 6]" in found.message
    assert found.help is not None and "classes: [" in found.help
    layer = ("mimic.teacher0.mimic_name=[model.fc]", "mimic.student.mimic_name=[model.fc]")
    assert codes_of(spec_of(SPEC, SIX, "mimic.adapter=auto", *layer)) == ["KD470"]
    on_loss = "mimic.cfgs.loss={type: l2_loss, adapter: auto}"
    assert codes_of(spec_of(SPEC, SIX, on_loss)) == ["KD470"]


def test_a_linear_map_between_classes_is_learnt_where_the_spec_says_so() -> None:
    with run_of(spec_of(SPEC, SIX, "mimic.adapter={type: linear}")) as run:
        (pair,) = run.joined.pairs
        assert (pair.student_shape, pair.adapter, pair.teacher_shape) == ("[B, 4]", "LinearAdapter", "[B, 6]")


def test_fewer_classes_than_the_datas_cannot_be_selected() -> None:
    found = check(spec_of(SPEC, "teacher0.model.kwargs.num_classes=3"), CheckOptions()).findings
    assert [f.code for f in found] == ["KD470"]
    assert found[0].help == "teacher0 knows fewer classes than are learnt: mimic its features instead"


def test_a_loss_that_reads_logits_beside_features_asks_for_classes_too() -> None:
    parsed = spec_of(SPEC, SIX, *FEATURES, "mimic.cfgs.loss={type: srd}", "mimic.adapter=null")
    assert codes_of(parsed) == ["KD470"]
    assert codes_of(parsed_with_classes()) == []


def parsed_with_classes() -> ParsedSpec:
    return spec_of(
        SPEC,
        SIX,
        *FEATURES,
        "mimic.cfgs.loss={type: srd}",
        "mimic.adapter=null",
        f"mimic.teacher0.classes={CHOSEN}",
    )


@pytest.mark.parametrize("weighting", ["entropy", "confidence"])
def test_teachers_are_weighed_by_the_datas_classes(weighting: str) -> None:
    kwargs = "kwargs: {num_classes: 6, in_channels: 1, widths: [4, 4, 4, 8]}"
    changes = (
        f"teacher1={{name: model, type: cifar_resnet8, {kwargs}}}",
        "mimic.cfgs.loss={type: kd_loss, adapter: {type: linear}}",
        f"mimic.teacher_weighting={weighting}",
    )
    teacher = "mimic.teacher1={mimic_name: [logits], allow_random: true, allow_weak_teacher: true"
    assert codes_of(spec_of(SPEC, *changes, teacher + "}")) == ["KD470"]
    assert codes_of(spec_of(SPEC, *changes, teacher + f", classes: {CHOSEN}}}")) == []
