"""The JSON Schema: valid itself, true to the samples, and of use against slips."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kdcli.commands.init import MODELINE, SCHEMA
from kdcli.reference.schema_json import json_schema, schema_text
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


def test_the_command_writes_it() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from kdcli.commands import options, words; words.schema(options.SchemaOptions());"
            "assert 'torch' not in sys.modules",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
    )
    assert json.loads(done.stdout)["$schema"].endswith("draft-07/schema#")
