"""One of everything behind `--plugin`: looked up, checked at its line, built, trained; and what is said where not."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from kdcli.check.check import CheckOptions, check
from kdcli.errors import Diagnostic, SpecError
from kdcli.losses import loss_of
from kdcli.records import Evaluation, Finished, Step
from kdcli.reference.tables import tables
from kdcli.spec.check.resolve import check_references
from kdcli.spec.plugins import import_plugins, own_code, recorded
from kdcli.spec.tables import Loss
from kdcli.training.run_folder import reopen
from tests.plugins.specs import MINE
from tests.training.conftest import Kdcli
from tests.training.runs import spec_of, train_all

PLUGINS = ("mine_kd",)
READER = "dataset.train.dataset.kwargs.image_reader"
SAMPLER = "dataset.batch_sampler.kwargs.sampler"
NOISE = "dataset.train.dataset.kwargs.transformer.1"
BATCH_FN = "dataset.train.dataloader.kwargs.batch_fn"
METRIC = "dataset.test.dataset.kwargs.evaluator"


def references(*changes: str, plugins: tuple[str, ...] = PLUGINS) -> list[Diagnostic]:
    return check_references(spec_of(MINE, *changes), tables(plugins))


def build(*changes: str, plugins: tuple[str, ...] = PLUGINS) -> list[Diagnostic]:
    return list(check(spec_of(MINE, *changes), CheckOptions(plugins=plugins, look="start")).findings)


def test_a_spec_of_own_code_is_right_and_has_a_plan() -> None:
    assert references() == []
    parsed = spec_of(MINE)
    found = check(parsed, CheckOptions(plugins=PLUGINS, look="start"))
    assert found.findings == () and found.plan is not None and found.plan.samples == 24


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("dataset.train.dataset.kwargs.sample=3", "KD320", "did you mean `samples`"),
        ("dataset.train.dataset.kwargs.samples=many", "KD322", "a whole number"),
        ("dataset.train.dataset.kwargs.order=left", "KD322", "one of `up`, `down`"),
        (f"{READER}.kwargs.valu=3", "KD320", "did you mean `value`"),
        (f"{NOISE}.kwargs.strength=strong", "KD322", "must be a number"),
        (f"{NOISE}.kwargs.strenth=1.0", "KD320", "did you mean `strength`"),
        (f"{BATCH_FN}.kwargs.last=0.5", "KD320", "did you mean `least`"),
        (f"{SAMPLER}.kwargs.shufled=true", "KD320", "did you mean `shuffled`"),
        (f"{METRIC}.kwargs.smoth=0.1", "KD320", "did you mean `smooth`"),
        ("trainer.optimizer.kwargs.bta=0.1", "KD320", "did you mean `beta`"),
        ("trainer.optimizer.kwargs.lr=fast", "KD322", "must be a number"),
        ("trainer.lr_scheduler.kwargs.evry=1", "KD320", "did you mean `every`"),
    ],
)
def test_arguments_are_checked_at_their_line_without_an_import(change: str, code: str, words: str) -> None:
    (one,) = references(change)
    assert one.code == code and one.span is not None and one.path is not None
    assert words in f"{one.message} {one.help}"
    assert one.path[-1] == change.partition("=")[0].rpartition(".")[2]


PLACES = [
    "dataset.train.dataset.type",
    f"{READER}.type",
    f"{NOISE}.type",
    f"{BATCH_FN}.type",
    f"{SAMPLER}.type",
    f"{METRIC}.type",
    "trainer.optimizer.type",
    "trainer.lr_scheduler.type",
    "net.model.type",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_forgotten_plugin_is_named_for_every_table(place: str) -> None:
    kwargs = f"{place.removesuffix('type')}kwargs={{}}"
    found = [one for one in references(f"{place}=theirs.code:Thing", kwargs) if one.code == "KD309"]
    assert {one.message for one in found} == {
        "`theirs` is not a plugin of this run: add `--plugin theirs` for `theirs.code:Thing`"
    }
    assert all(one.span is not None for one in found)


@pytest.mark.parametrize("place", PLACES)
def test_what_a_package_lacks_is_told_at_the_line(place: str) -> None:
    found = build(f"{place}=mine_kd.training:Sings")
    assert {(one.code, one.message, one.help) for one in found} == {
        ("KD414", "`mine_kd.training` has no `Sings`", "did you mean `Signs`?")
    }
    assert all(one.path is not None and one.path[-1] == "type" and one.span is not None for one in found)


def test_nothing_is_imported_from_a_spec_alone(mine: Path) -> None:
    (mine / "kd_secret.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    parsed = spec_of(MINE, "trainer.optimizer.type=kd_secret:Own")
    with pytest.raises(SpecError) as caught:
        train_all(parsed, plugins=PLUGINS)
    assert [one.code for one in caught.value.diagnostics] == ["KD413"]
    assert [one.code for one in check(parsed, CheckOptions(plugins=PLUGINS)).findings] == ["KD413"]
    assert not Path("imported").exists()


def test_a_package_that_can_t_be_imported_is_one_message_with_its_own_error(mine: Path, kdcli: Kdcli) -> None:
    (mine / "kd_broken.py").write_text('"""Broken."""\n\nSIZE = tiny + 1\n')
    (mine / "kd_unclear.py").write_text("def f(:\n    pass\n")
    for name, place in (("kd_broken", "kd_broken.py:3"), ("kd_unclear", "kd_unclear.py:1")):
        Path("cfg.yaml").write_text(
            MINE.replace("mine_kd.training", name).replace("mine_kd.data:Noise", f"{name}:Noise"),
            encoding="utf-8",
        )
        code, out, err = kdcli("train", "cfg.yaml", "--plugin", "mine_kd", "--plugin", name)
        assert code == 1, out + err
        assert err.count("error KD") == 1 and "Traceback" not in err
        assert f"error KD414: `{name}` can't be imported: " in err and place in err
    assert "SyntaxError" in err and "NameError: name 'tiny' is not defined" not in err


def test_all_own_code_of_a_spec_is_found() -> None:
    spec = spec_of(MINE).spec
    names = {name for _, name in own_code(spec)}
    assert {name.rpartition(":")[2] for name in names} == {
        *("Dots", "Painter", "Noise", "Flip", "Dim", "Backwards", "Signs", "Halving", "Recall")
    }
    import_plugins(spec, PLUGINS)


def test_a_function_of_an_image_is_told_what_a_transform_is() -> None:
    found = references(f"{NOISE}={{type: 'mine_kd.data:darker'}}")
    assert [one.code for one in found] == ["KD321"]
    assert found[0].help is not None and "let a class have `__call__(self, image)`" in found[0].help


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("dataset.train.dataset.type", "mine_kd.training:Recall", "can't be built: "),
        (f"{METRIC}.type", "mine_kd.data:Dim", "without `update`, which is no metric"),
        (f"{NOISE}.type", "mine_kd.data:Painter", "gives a `Painter`, which can't be called on images"),
        ("trainer.optimizer.type", "mine_kd.data:Dots", "optimizer"),
    ],
)
def test_own_code_of_another_kind_is_told(place: str, value: str, message: str) -> None:
    found = build(f"{place}={value}", f"{place.removesuffix('type')}kwargs={{}}")
    wrong = [one for one in found if one.severity == "error"]
    assert wrong and {one.code for one in wrong} <= {"KD505", "KD440", "KD321"}
    assert all(message in one.message for one in wrong), wrong


def test_it_trains_and_the_best_is_the_metric_s() -> None:
    records = train_all(spec_of(MINE), plugins=PLUGINS)
    finished = records[-1]
    assert isinstance(finished, Finished) and finished.primary == "recall"
    measured = [one for one in records if isinstance(one, Evaluation) and one.network == "student"]
    assert all({"recall", "top1"} <= set(one.metrics) for one in measured)
    # Three samples of each class: mean recall is top-1.
    assert all(one.metrics["recall"] == pytest.approx(one.metrics["top1"]) for one in measured)
    assert finished.best["recall"] == max(one.metrics["recall"] for one in measured)
    assert json.loads(Path("out/env.json").read_text())["plugins"] == ["mine_kd"]


def test_a_run_is_reopened_with_the_packages_that_it_was_started_with() -> None:
    train_all(spec_of(MINE, "trainer.max_iter=1", "trainer.max_epoch=null"), plugins=PLUGINS)
    assert reopen(Path("out"), plugins=PLUGINS).options.plugins == PLUGINS
    with pytest.raises(SpecError) as caught:
        reopen(Path("out"))
    (one,) = caught.value.diagnostics
    assert one.code == "KD309" and one.help == "the run was started with `--plugin mine_kd`"


@pytest.mark.slow
def test_a_run_folder_names_the_packages_that_a_command_lacks(kdcli: Kdcli) -> None:
    Path("cfg.yaml").write_text(MINE, encoding="utf-8")
    assert kdcli("train", "cfg.yaml", "trainer.max_epoch=1", "--no-check", "--plugin", "mine_kd")[0] == 0
    told = "`mine_kd` is not a plugin of this run: add `--plugin mine_kd` for `mine_kd."
    for command in (("eval", "out"), ("export", "out")):
        code, _, err = kdcli(*command)
        assert code == 1 and err.count("error KD309") == 1 and told in err, err
        assert "help: the run was started with `--plugin mine_kd`" in err
    code, _, err = kdcli("report", "out")
    assert code == 0 and told in err and "curves alone" in err
    assert kdcli("report", "out", "--quick")[0] == 0
    for command in ("train", "validate", "eval", "export", "cache"):
        code, out, err = kdcli(command, "cfg.yaml", *(["--resume"] if command == "train" else []))
        assert code == 1 and "error KD309" in out + err and told in out + err, (command, out, err)


# losses and mimic methods

FEATURES = ("mimic.student.mimic_name=[model.layer3]", "mimic.teacher0.mimic_name=[model.layer3]")
SAME = "net.model.kwargs.widths=[4, 4, 4, 8]"


def cfgs(*losses: str) -> tuple[str, ...]:
    named = ", ".join(f"loss{number}: {{type: 'mine_kd.losses:{loss}" for number, loss in enumerate(losses))
    return (f"mimic.cfgs={{{named}}}", *FEATURES, SAME)


HUBER = cfgs("huber', kwargs: {beta: 0.5}}")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (cfgs("huber', kwargs: {bta: 0.5}}"), "KD320", "did you mean `beta`"),
        (cfgs("huber', kwargs: {beta: wide}}"), "KD322", "must be a number"),
        (cfgs("unbound'}"), "KD352", "takes `x` by position, which kdcli has nothing for"),
        (("mimic.mimic_ins_type=theirs:Method",), "KD309", "`theirs` is not a plugin of this run"),
        (("mimic.cfgs={loss: {type: 'theirs:huber'}}",), "KD309", "`theirs` is not a plugin of this run"),
    ],
)
def test_an_own_loss_is_checked_at_its_line(changes: tuple[str, ...], code: str, words: str) -> None:
    (one,) = references(*changes)
    assert one.code == code and words in f"{one.message} {one.help}" and one.span is not None


def test_a_loss_without_a_record_is_taken_as_its_signature_says_and_told_once() -> None:
    (one,) = build(*cfgs("huber', kwargs: {beta: 0.5}}", "huber'}"))
    assert (one.code, one.severity) == ("KD351", "warning") and one.span is not None
    assert one.message == (
        "`mine_kd.losses:huber` has no `kdcli_record`: it is taken as a feature loss over features of any layout"
    )
    assert build("mimic.cfgs={loss: {type: 'mine_kd.losses:softened'}}", "mimic.temperature=3.0") == []
    record = loss_of("mine_kd.losses:softened")
    assert (record.kind, record.weight, record.softened) == ("logit", 0.5, True)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (cfgs("misspelt'}"), "KD350", "has no field `wieght`"),
        (("mimic.mimic_ins_type=mine_kd.losses:huber",), "KD350", "is no subclass of `Mimicker`"),
        (
            (
                "mimic.mimic_ins_type=mine_kd.methods:SignMatching",
                "mimic.cfgs={divisr: 3.0}",
                *FEATURES,
                SAME,
            ),
            "KD319",
            "did you mean `divisor`",
        ),
        (
            (
                "mimic.mimic_ins_type=mine_kd.methods:SignMatching",
                "mimic.cfgs={divisor: high}",
                *FEATURES,
                SAME,
            ),
            "KD322",
            "must be a number",
        ),
    ],
)
def test_a_record_or_an_option_that_is_wrong_is_told(changes: tuple[str, ...], code: str, words: str) -> None:
    (one,) = build(*changes)
    assert one.code == code and words in f"{one.message} {one.help}" and one.span is not None
    with pytest.raises(SpecError) as caught:
        train_all(spec_of(MINE, *changes), plugins=PLUGINS)
    assert [finding.code for finding in caught.value.diagnostics] == [code]


def losses_of(*changes: str) -> dict[str, float]:
    records = train_all(spec_of(MINE, *changes, "trainer.max_epoch=1"), plugins=PLUGINS, overwrite=True)
    return dict(next(one for one in records if isinstance(one, Step)).losses)


def test_own_losses_and_methods_train_and_are_weighted_once() -> None:
    losses = losses_of(
        *cfgs("huber'}", "huber', kwargs: {loss_weight: 3.0}}", "Scaled', kwargs: {start: 0.5}}")
    )
    one, three, scaled = (losses[f"mimic_job0.teacher0.loss{number}"] for number in range(3))
    assert 0 < one and three == pytest.approx(3 * one) and scaled > 0
    logits = "mimic.cfgs={loss: {type: 'mine_kd.losses:softened'%s}}"
    half = losses_of(logits % "")["mimic_job0.teacher0.loss"]
    assert half == pytest.approx(
        losses_of(logits % ", kwargs: {loss_weight: 1.0}")["mimic_job0.teacher0.loss"] / 2
    )
    method = ("mimic.mimic_ins_type=mine_kd.methods:SignMatching", *FEATURES, SAME)
    whole = losses_of(*method, "mimic.cfgs={divisor: 1.0}")["mimic_job0.teacher0.signs"]
    half = losses_of(*method, "mimic.cfgs={divisor: 2.0}")["mimic_job0.teacher0.signs"]
    assert whole > 0 and half == pytest.approx(whole / 2)


@pytest.mark.parametrize(
    "name", ["mine_kd.losses:huber", "mine_kd.losses:softened", "mine_kd.methods:SignMatching"]
)
def test_the_block_that_is_printed_validates(name: str, kdcli: Kdcli) -> None:
    code, out, err = kdcli("methods", name, "--plugin", "mine_kd")
    assert code == 0, err
    lines = out.splitlines()
    block = textwrap.dedent(
        "\n".join(lines[next(n for n, one in enumerate(lines) if one.strip() == "mimic:") :])
    )
    text = MINE[: MINE.index("mimic:")] + block + "\n" + MINE[MINE.index("dataset:") :]
    for side, size in (("net", "8x4"), ("teacher0", "32x4")):
        before, _, after = text.partition(f"{side}:\n  name: model\n")
        text = f"{before}{side}:\n  name: model\n  type: cifar_resnet{size}\n" + after.partition("\n")[2]
    text = text.replace(", widths: [2, 2, 4, 4]", "").replace(", widths: [4, 4, 4, 8]", "")
    assert check_references(spec_of(text), tables(PLUGINS)) == []
    found = check(spec_of(text), CheckOptions(plugins=PLUGINS)).findings
    assert [one for one in found if one.severity == "error"] == []


def test_methods_of_a_package_that_is_no_plugin(kdcli: Kdcli) -> None:
    code, _, err = kdcli("methods", "theirs:huber")
    assert code == 1 and "`theirs` is not a plugin of this run: add `--plugin theirs`" in err


def test_the_record_of_a_mimic_method_is_no_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    import mine_kd.methods as methods

    mapped = type("Mapped", (methods.SignMatching,), {"kdcli_record": {"paired": False}})
    monkeypatch.setattr(methods, "Mapped", mapped, raising=False)
    found = build("mimic.mimic_ins_type=mine_kd.methods:Mapped", "mimic.cfgs={}")
    assert [one.code for one in found] == ["KD350"] and "is a `dict`, not a `Method`" in found[0].message


FRAIL = "mine_kd.frail"


@pytest.mark.parametrize(
    ("change", "failed", "message"),
    [
        (f"mimic.cfgs={{loss: {{type: '{FRAIL}:late'}}}}", "KD496: epoch ", "KeyError: 'late'"),
        (
            f"mimic.cfgs={{loss: {{type: '{FRAIL}:Forgetful'}}}}",
            "KD435: job `mimic_job0`",
            "IndexError: list index",
        ),
        (
            f"trainer.optimizer={{type: '{FRAIL}:Optimizer', kwargs: {{lr: 0.1}}}}",
            "KD496: epoch 1, training step 1 of",
            "ZeroDivisionError: step",
        ),
        (f"{NOISE}={{type: '{FRAIL}:Transform'}}", "KD496: ", "LookupError: image"),
    ],
)
def test_own_code_that_fails_is_no_fault_of_kdcli(
    change: str, failed: str, message: str, kdcli: Kdcli
) -> None:
    from mine_kd import frail

    frail.CALLS["loss"] = 0
    Path("mine.yaml").write_text(MINE)
    code, _, errors = kdcli("train", "mine.yaml", change, "--plugin", "mine_kd", "--no-check", "--no-report")
    assert code == 1 and "Traceback" not in errors
    assert failed in errors and message in errors and "mine_kd/frail.py:" in " ".join(errors.split())


@pytest.mark.parametrize(
    ("name", "words"), [("mac", "gives no `macro`, its `primary`"), ("top1", "calls a value `top1`")]
)
def test_a_metric_gives_its_primary_and_no_name_of_the_tasks(name: str, words: str, kdcli: Kdcli) -> None:
    Path("mine.yaml").write_text(MINE)
    metric = f"{METRIC}={{type: '{FRAIL}:Metric', kwargs: {{name: {name}}}}}"
    code, _, errors = kdcli("train", "mine.yaml", metric, "--plugin", "mine_kd", "--no-report")
    assert code == 1 and "KD495" in errors and words in " ".join(errors.split())


@pytest.mark.parametrize(
    ("record", "words"),
    [({"kind": "featur"}, "`kind` in `kdcli_record`"), ({"kind": "feature", "weight": "five"}, "a number")],
)
def test_a_value_of_a_record_is_checked(
    record: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mine_kd.losses as losses

    monkeypatch.setattr(losses.huber, "kdcli_record", record, raising=False)
    with pytest.raises(SpecError, match=words) as caught:
        recorded("mine_kd.losses:huber", Loss)
    assert caught.value.diagnostics[0].code == "KD350"


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("9", "the label 9 of item 5 is none of 4 classes"),
        ("-1", "the label -1 of item 5 is none of 4 classes"),
        ("cat", "labels are whole numbers"),
    ],
)
def test_a_label_of_an_own_dataset_that_is_no_class_is_told(label: str, words: str) -> None:
    kwargs = f"{{label: {label}, transformer: [{{type: to_tensor}}]}}"
    dataset = f"dataset.train.dataset={{type: '{FRAIL}:Labelled', kwargs: {kwargs}}}"
    found = build(dataset)
    assert any(one.code == "KD505" and words in one.message for one in found), found


@pytest.mark.parametrize(("beta", "code"), [("0", "KD328"), ("-1", "KD328"), (".inf", "KD223"), ("0.5", "")])
def test_ranges_beside_the_arguments_of_own_code_hold(beta: str, code: str) -> None:
    change = f"mimic.cfgs={{loss: {{type: 'mine_kd.losses:huber', kwargs: {{beta: {beta}}}}}}}"
    try:
        found = references(change)
    except SpecError as error:
        found = list(error.diagnostics)
    assert [one.code for one in found] == ([code] if code else [])
    if code == "KD328":
        (one,) = found
        assert one.message.startswith("`beta` of `mine_kd.losses:huber` must be a number more than 0, got")
        assert one.span is not None and change[one.span.column - 1 :].startswith(beta)


def test_a_weight_of_an_own_loss_is_not_negative_unless_that_is_said() -> None:
    loss = "mimic.cfgs={loss: {type: 'mine_kd.losses:huber', kwargs: {loss_weight: -1}%s}}"
    assert [one.code for one in references(loss % "")] == ["KD228"]
    assert references(loss % ", allow_negative: true") == []
