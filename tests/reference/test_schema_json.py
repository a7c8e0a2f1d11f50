"""The JSON Schema: valid itself, true to the samples, and of use against slips."""

from __future__ import annotations

import copy
import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kdcli.commands.samples import MODELINE, SCHEMA
from kdcli.reference.schema_json import json_schema, schema_text
from kdcli.reference.tables import tables
from kdcli.spec.check.signatures import signature
from kdcli.spec.tables import Target
from tests.plugins.specs import MINE
from tests.training.runs import SPEC

SAMPLES = sorted((Path(__file__).parents[2] / "sample_configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = json_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """The small spec with one value set."""
    spec: dict[str, Any] = copy.deepcopy(yaml.safe_load(SPEC))
    place: Any = spec
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return spec


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples(path: Path, validator: jsonschema.Draft7Validator) -> None:
    found = [
        f"{list(e.absolute_path)}: {e.message}"
        for e in validator.iter_errors(yaml.safe_load(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_editors_find_the_schema_of_a_sample(path: Path) -> None:
    assert path.read_text().startswith(MODELINE)


def test_the_schema_beside_the_samples_is_the_one_of_this_version() -> None:
    """`kdcli schema > sample_configs/kdcli.schema.json` makes it so again."""
    assert (SAMPLES[0].parent / SCHEMA).read_text() == schema_text()


def test_it_is_small_and_shown_as_generated() -> None:
    """A diff of it can be read: about 260 kB, half of it descriptions, which a host of the repository folds up."""
    assert (SAMPLES[0].parent / SCHEMA).stat().st_size < 280_000
    assert f"{SCHEMA} linguist-generated=true" in (SAMPLES[0].parent / ".gitattributes").read_text()
    assert json.loads(schema_text()) == json_schema()


@pytest.mark.parametrize("like", ["kd_loss", "mgd"])
def test_another_loss_is_few_lines(like: str) -> None:
    """Its name in the list, and its arguments: beside those of others that take the same, or a line of their own."""
    known = tables()
    path = known.losses[like].path
    # The same arguments as another, and (a preset takes one away) arguments that no other has.
    for added in (Target(path), Target(path, {next(iter(_arguments(path))): 1})):
        text = schema_text(replace(known, losses={**known.losses, "a_new_one": added}))
        diff = difflib.unified_diff(schema_text().splitlines(), text.splitlines(), n=0, lineterm="")
        changed_lines = [line for line in list(diff)[2:] if line[0] in "+-"]
        assert 2 <= len(changed_lines) <= 4, changed_lines
        assert any('"const": "a_new_one"' in line for line in changed_lines)


def _arguments(path: str) -> Iterable[str]:
    found = signature(Target(path))
    assert found is not None
    return found.kwargs


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("runtime", "runnr"), {}),
        (("runtime", "random_seed"), "three"),
        (("net", "type"), "cifar_resnet9"),
        (("net", "kwargs", "num_clases"), 4),
        (("net", "kwargs", "num_classes"), "four"),
        (("mimic", "cfgs", "loss", "type"), "kd_los"),
        (("mimic", "cfgs", "loss", "kwargs", "TT"), 2),
        (("mimic", "adapter"), "outo"),
        (("mimic", "warm_up"), 3),
        (("mimic", "teacher0", "mimic_names"), ["logits"]),
        (("dataset", "train", "dataset", "type"), "fke"),
        (("dataset", "train", "dataset", "kwargs", "transformer", 0, "kwargs", "sizes"), 3),
        (("trainer", "optimizer", "type"), "sgd"),
        (("trainer", "max_epoch"), "many"),
        (("trainer", "max_epoch"), 0),
        (("trainer", "clip_grad_norm"), 0),
        (("mimic", "cfgs", "loss", "kwargs", "T"), 0),
        (("mimic", "cfgs", "loss", "kwargs", "temperature"), -1),
        (("trainer", "ema"), {"kwargs": {"decay": 1.0}}),
        (("ema",), {"enable": True, "kwargs": {"decy": 0.99}}),
        (("mimic", "teacher0", "classes"), {"cat": -1}),
        (("mimic", "teacher0", "classes"), [1.5]),
        (("net", "outputs"), [1]),
    ],
)
def test_slips(path: tuple[str | int, ...], value: object, validator: jsonschema.Draft7Validator) -> None:
    assert validator.is_valid(yaml.safe_load(SPEC))
    assert not validator.is_valid(changed(*path, value=value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("net",), {"type": "torchvision.resnet18"}),
        (("mimic", "cfgs"), {"loss": {"type": "kd_loss", "kwargs": {"temperature": 4}}}),
        (("mimic", "teacher0", "mimic_name"), "logits"),
        (("saver",), None),
        (("x-note",), "anything"),
        (("trainer", "max_epoch"), 1e2),
        (("mimic", "teacher0", "classes"), {"cat": 281, "dog": "golden retriever"}),
        (("mimic", "teacher0", "classes"), [281, 207]),
        (("net", "outputs"), ["logits", "_"]),
    ],
)
def test_freedoms(path: tuple[str | int, ...], value: object, validator: jsonschema.Draft7Validator) -> None:
    assert validator.is_valid(changed(*path, value=value))


FRS = {"mimic_ins_type": "FRS", "teacher0": {"mimic_name": "a"}, "student": {"mimic_name": "a"}}


@pytest.mark.parametrize(
    ("cfgs", "right"),
    [
        ({"mask_count": "elements", "neck_loss": {"type": "l2_loss"}}, True),
        ({"pred_gradient": None, "rpn_loss": {"type": "l2_loss"}}, True),
        ({"mask_count": "channels"}, False),
        ({"pred_gradient": "no"}, False),
        ({"maskcount": "elements"}, False),
        ({"neck_loss": "l2_loss"}, False),
        ({"loss": {"type": "l2_loss"}}, False),
    ],
)
@pytest.mark.parametrize("as_jobs", [False, True])
def test_options_of_a_method(
    cfgs: dict[str, Any], right: bool, as_jobs: bool, validator: jsonschema.Draft7Validator
) -> None:
    job = {**FRS, "cfgs": cfgs}
    mimic = {"mimic_as_jobs": True, "mimic_job0": job} if as_jobs else job
    assert validator.is_valid(changed("mimic", value=mimic)) is right


def test_an_option_is_none_of_a_method_without_options(validator: jsonschema.Draft7Validator) -> None:
    assert not validator.is_valid(changed("mimic", "cfgs", "mask_count", value="elements"))
    assert not validator.is_valid(changed("mimic", "mimic_ins_type", value="Frs"))


def test_the_command_writes_it() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from kdcli.commands import help_options, reference;"
            "reference.schema(help_options.SchemaOptions());"
            "assert 'torch' not in sys.modules",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
    )
    assert json.loads(done.stdout)["$schema"].endswith("draft-07/schema#")


def test_own_code_may_stand_wherever_a_name_does(validator: jsonschema.Draft7Validator) -> None:
    spec = yaml.safe_load(MINE)
    assert [e.message for e in validator.iter_errors(spec)] == []
    spec["mimic"] |= {"mimic_ins_type": "mine_kd.methods:SignMatching", "cfgs": {"power": 2.0}}
    assert [e.message for e in validator.iter_errors(spec)] == []
    spec["mimic"]["mimic_ins_type"] = "mine_kd.methods"
    assert len(list(validator.iter_errors(spec))) == 1
