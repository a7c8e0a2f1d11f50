"""A Spec written as complete YAML that reads back as an equal Spec."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import yaml

from kdcli.spec.schema import Spec


class Dumper(yaml.SafeDumper):
    """A YAML dumper that quotes exactly the strings that YAML 1.2's core schema would read as something else."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(dumper: Dumper, value: float) -> yaml.ScalarNode:
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


Dumper.add_representer(float, _float)
Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)
for _tag, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    ("merge", "<<"),
):
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)


def resolved_data(spec: Spec) -> dict[str, Any]:
    """The spec with every default, under the language's own keys."""
    data = spec.model_dump(exclude_none=True)
    mimic = data.get("mimic")
    teachers = data.pop("teachers")
    written: dict[str, Any] = {"runtime": data["runtime"], "net": data["net"], **teachers}
    if mimic is not None:
        written["mimic"] = _mimic(mimic)
    return {**written, **{key: value for key, value in data.items() if key not in written}}


def _mimic(mimic: dict[str, Any]) -> dict[str, Any]:
    jobs = {name: _job(job) for name, job in mimic.pop("jobs").items()}
    if list(jobs) == ["mimic_job0"]:
        return {**jobs["mimic_job0"], **mimic}
    return {"mimic_as_jobs": True, **jobs, **mimic}


def _job(job: dict[str, Any]) -> dict[str, Any]:
    cfgs = {**job.pop("losses"), **job.pop("options")}
    teachers = job.pop("teachers")
    return {**job, "cfgs": cfgs, **teachers}


def resolved_yaml(spec: Spec) -> str:
    """Complete YAML; parsing it gives an equal Spec."""
    data = resolved_data(spec)
    return yaml.dump(
        data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )


def spec_hash(spec: Spec) -> str:
    """sha256 of the resolved spec, the same for every way of writing it."""
    text = json.dumps(resolved_data(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
