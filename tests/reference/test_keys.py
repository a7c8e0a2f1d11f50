"""Every key and argument of the language has its page, with a meaning and an example that holds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from kdcli.commands import reference
from kdcli.commands.completion import complete_name
from kdcli.commands.help_options import ExplainOptions
from kdcli.errors import UsageError
from kdcli.reference.editor_words import SWITCHES
from kdcli.reference.keys import HERE, argument_meaning, described, key_pages, pages_of
from kdcli.reference.schema_json import json_schema
from kdcli.reference.tables import tables
from kdcli.reference.words import KINDS, TORCH, arguments_named, subjects, types_named, words
from kdcli.report import console
from kdcli.report.reference_text import arguments_text, keys_text, subjects_text, type_text
from kdcli.spec import schema
from kdcli.spec.check.signatures import signature
from kdcli.spec.tables import torch_arguments

KEYS: dict[str, dict[str, list[Any]]] = yaml.safe_load((HERE / "keys.yaml").read_text())
ARGUMENTS: dict[str, dict[str, str]] = yaml.safe_load((HERE / "arguments.yaml").read_text())
MODELS = {
    name: model
    for name, model in inspect.getmembers(schema, inspect.isclass)
    if issubclass(model, BaseModel) and model not in (schema.Model, BaseModel)
}


def test_every_key_has_words_and_every_word_a_key() -> None:
    assert {name: set(model.model_fields) for name, model in MODELS.items()} == {
        name: set(keys) for name, keys in KEYS.items()
    }


@pytest.mark.parametrize(("model", "key"), [(model, key) for model, keys in KEYS.items() for key in keys])
def test_an_example_is_a_value_that_the_key_takes(model: str, key: str) -> None:
    """Of keys that the user names, the example brings the name."""
    example, meaning = KEYS[model][key]
    assert meaning[0].isupper() or meaning[0] == "`", meaning
    assert meaning.endswith("."), meaning
    value = yaml.safe_load(example) if isinstance(example, str) else example
    if (model, key) in {("Spec", "mimic"), ("Spec", "dataset"), ("Dataset", "train"), ("Dataset", "test")}:
        return  # the parser brings these into the models' form first
    if key == "adapter":
        value = {"type": value}
    field = MODELS[model].model_fields[key]
    annotation = field.annotation
    for one in field.metadata:
        annotation = Annotated[annotation, one]
    TypeAdapter(annotation).validate_python(value)


def test_an_example_is_put_where_its_key_stands() -> None:
    for path, page in key_pages().items():
        place: Any = yaml.safe_load(page.example) if page.example else None
        steps = [] if place is None else path.replace("cfgs.OPTION", "cfgs").split(".")
        for step in steps:
            if isinstance(place, list):
                (place,) = place
            name = {"teacherN": "teacher0", "mimic_jobN": "mimic_job0", "LOSS": "loss"}.get(step, step)
            assert isinstance(place, Mapping), path
            place = place[name]


def takers() -> list[tuple[str, str]]:
    return [
        (table, name)
        for table in KINDS
        if table not in TORCH and table != "mimickers"
        for name in getattr(tables(), table)
    ]


def test_every_argument_has_a_meaning_and_every_meaning_an_argument() -> None:
    missing, used = [], {table: set[str]() for table in ARGUMENTS}
    for table, name in takers():
        takes = signature(getattr(tables(), table)[name])
        for argument in () if takes is None else takes.kwargs:
            assert takes is not None
            if not argument_meaning(table, name, argument, takes):
                missing.append(f"{table}: {name}.{argument}")
            own = f"{name}.{argument}"
            used.setdefault(table, set()).add(own if own in ARGUMENTS.get(table, {}) else argument)
    for table in TORCH:
        known = {key for name in getattr(tables(), table) for key in torch_arguments(name)}
        missing += [f"{table}: {key}" for key in known - set(ARGUMENTS[table])]
        used[table] = known | set(SWITCHES if table == "optimizers" else ())
    assert missing == []
    for table, meanings in ARGUMENTS.items():
        assert set(meanings) <= used[table], table


def test_a_docstring_says_what_arguments_are() -> None:
    doc = "One thing.\n\nwidth: of the stem; more. first, second: their shares. Output `x`: a map.\nSource: none."
    assert described(doc) == {"width": "Of the stem.", "first": "Their shares.", "second": "Their shares."}


@pytest.mark.parametrize(
    ("word", "paths"),
    [
        ("trainer.ema", ["trainer.ema"]),
        ("ema.kwargs.inner_T", ["trainer.ema.kwargs.inner_T"]),
        ("inner_T", ["trainer.ema.kwargs.inner_T"]),
        ("mimic.mimic_job0.teacher1.cache.views", ["mimic.teacherN.cache.views"]),
        ("mimic.teacher0", ["mimic.teacherN"]),
        ("teacher0", ["teacherN"]),
        ("teacher_weight", ["mimic.teacherN.teacher_weight"]),
        ("mimic.cfgs.kd.type", ["mimic.cfgs.LOSS.type"]),
        ("mimic.stages[0].train", ["mimic.stages.train"]),
        ("dataset.test.dataloader.kwargs.num_workers", ["dataset.train.dataloader.kwargs.num_workers"]),
        ("dataset.dataloader", ["dataset.train.dataloader"]),
        ("dataset.test", ["dataset.test"]),
        ("net.backbone.kwargs", ["net.kwargs"]),
        ("teacher0.backbone.type", ["net.type"]),
        ("x_block.batch_sampler.kwargs.drop_last", ["dataset.train.batch_sampler.kwargs.drop_last"]),
        ("decay", ["trainer.ema.kwargs.decay", "mimic.cfgs.LOSS.decay", "mimic.decay"]),
        ("feat_norm", []),
    ],
)
def test_a_path_as_a_spec_writes_it_has_its_page(word: str, paths: list[str]) -> None:
    assert [page.path for page in pages_of(word)] == paths


def test_a_page_says_range_and_default() -> None:
    (page,) = pages_of("trainer.ema.kwargs.decay")
    assert (page.takes, page.default) == ("a number, at least 0 and less than 1", "0.9999")
    (page,) = pages_of("dataset.train.batch_sampler.kwargs.batch_size")
    assert page.default is None and page.takes.startswith("a whole number, ")
    (page,) = pages_of("trainer.ema")
    assert page.keys == ("enable", "ema_type", "kwargs")


@pytest.mark.parametrize(
    "word", ["kd_loss", "resnet18", "SGD", "LAMB", "StepLR", "base", "auto", "normalize"]
)
def test_a_type_is_explained(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference.explain(ExplainOptions(word=word))
    assert capsys.readouterr().out.startswith(word)


def test_an_argument_is_explained_with_who_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments_named("correct_probability") == {
        "What the virtual teacher puts on the label.": [("loss", "tfkd_reg")]
    }
    reference.explain(ExplainOptions(word="loss.kwargs.correct_probability"))
    assert "loss tfkd_reg" in capsys.readouterr().out


def test_a_slip_gets_the_nearest_word() -> None:
    with pytest.raises(UsageError, match=r"no word `trainer\.emma`") as error:
        reference.explain(ExplainOptions(word="trainer.emma"))
    assert "trainer.ema" in str(error.value.diagnostics[0].help)


def test_without_a_word_all_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    reference.explain(ExplainOptions(word=None))
    listed = capsys.readouterr().out
    assert "kd_loss" in listed and "trainer" in listed and "resnet18" in listed


def test_on_a_narrow_screen_no_word_is_cut() -> None:
    texts = [subjects_text(subjects(), width=80)]
    texts += [keys_text([page], width=80) for page in key_pages().values()]
    texts += [type_text(one, width=80) for word in ("resnet18", "FPN", "SGD") for one in types_named(word)]
    texts.append(arguments_text("T", arguments_named("T"), width=80))
    known = {word for text in ARGUMENTS.values() for line in text.values() for word in line.split()}
    for text in texts:
        for line in text.splitlines():
            assert len(line) <= 80 or line.startswith("  "), line  # what is to be pasted stays whole
    narrow = " ".join(texts[-1].split())
    assert all(word in narrow for word in "Temperature logits softmax".split()) and "softmax." in known


def test_names_are_completed() -> None:
    assert complete_name("method", "kd") == ["kd_loss"]
    assert "trainer.ema" in complete_name("word", "trainer.e")
    assert "KD203" in complete_name("word", "kd20")
    assert complete_name("sample", "digits_k") == ["digits_kd"]
    assert len(list(words())) > 600


def test_every_property_of_the_schema_is_described() -> None:
    def bare(part: Any, path: str) -> list[str]:
        if isinstance(part, list):
            return [name for item in part for name in bare(item, path)]
        if not isinstance(part, dict):
            return []
        missing = []
        for key in ("properties", "patternProperties"):
            for name, value in part.get(key, {}).items() if isinstance(part.get(key), dict) else ():
                # A branch says more of what stands beside it already; its condition says nothing.
                if value is not False and "description" not in value and name not in ("kwargs", "cfgs"):
                    missing.append(f"{path}/{name}")
        return missing + [
            name for key, value in part.items() if key != "if" for name in bare(value, f"{path}/{key}")
        ]

    assert bare(json_schema(), "") == []


def test_a_pipe_has_no_width() -> None:
    assert console.screen_width(sys.stdout) is None


def test_what_freezes_parts_of_a_network_is_explained() -> None:
    """`self` is in no table, as it is no module."""
    (page,) = types_named("self")
    assert page.arguments[0].name == "freeze_patterns" and "self" in words()
    assert "self" in subjects()["module"]
    assert list(arguments_named("net.freeze_patterns").values()) == [[("module", "self")]]
