"""The spec language as JSON Schema (draft 7), for editors; torch-free."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from kdcli.reference.schema_kwargs import kwargs_schema, summary_of
from kdcli.reference.tables import tables
from kdcli.spec import schema
from kdcli.spec.check.signatures import signature
from kdcli.spec.form.canonical_jobs import JOB_KEYS
from kdcli.spec.tables import Table

Json = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
ANY_MODEL = r"^(torchvision|timm)\..+|^[\w.]+:[\w.]+$"
BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""Bounds that pydantic leaves in its own words where a validator stands before them."""
ANY_TORCHVISION = r"^torchvision\..+"


def schema_text() -> str:
    """The schema as `kdcli schema` prints it and as it lies beside the samples."""
    return json.dumps(json_schema(), indent=1) + "\n"


def json_schema() -> Json:
    """The whole language as it is written, with the arguments of every type.

    Top-level keys that it does not know are let through: they may be anchored building blocks, which
    `kdcli validate` tells apart from slips.
    """
    known = tables()
    definitions = _models()
    definitions |= {
        "Module": _module(known.modules),
        "Networks": {"anyOf": [_ref("Module"), {"type": "array", "items": _ref("Module")}]},
        "Loss": _component(known.losses, _properties(schema.LossSpec), schema.LossSpec, temperature=True),
        "Adapter": {
            "anyOf": [{"enum": sorted(known.adapters)}, _component(known.adapters, {}, schema.AdapterSpec)]
        },
        "DatasetSpec": _dataset(known.datasets),
        "Transform": _component(known.transforms, {}, schema.Component, ANY_TORCHVISION),
        "BatchFn": _component(known.batch_fns, {}, schema.Component),
        "ImageReader": _component(known.image_readers, {}, schema.Component),
        "Sampler": _component(known.samplers, {}, schema.Component),
        "Evaluator": _component(known.evaluators, {}, schema.Component)
        if isinstance(known.evaluators, Mapping)
        else _ref("Component"),
        "OptimizerSpec": _named(definitions["OptimizerSpec"], known.optimizers),
        "SchedulerSpec": _named(definitions["SchedulerSpec"], known.schedulers),
        "Job": _job(definitions),
    }
    definitions["Mimic"] = _mimic(definitions)
    definitions["LossSpec"], definitions["AdapterSpec"] = _ref("Loss"), _ref("Adapter")
    kwargs = definitions["BatchSamplerKwargs"]["properties"]
    kwargs["sampler"] = _ref("Sampler")
    definitions["DataLoaderKwargs"]["properties"]["batch_fn"] = _ref("BatchFn")
    definitions["DataPart"]["required"] = ["dataset"]
    definitions["Dataset"]["properties"] |= {
        key: definitions["DataPart"]["properties"][key] for key in ("batch_sampler", "dataloader")
    }
    top = definitions.pop("Spec")
    for gone in ("ModuleSpec",):
        definitions.pop(gone, None)
    properties = {key: value for key, value in top["properties"].items() if key != "teachers"}
    properties |= {"net": _ref("Networks"), "mimic": _ref("Mimic"), "ema": _ref("Ema")}
    whole: Json = {
        "$schema": DRAFT,
        "title": "kdcli spec",
        "description": "A distillation (or training) spec of kdcli.",
        "type": "object",
        "required": ["net", "dataset", "trainer"],
        "properties": properties,
        "patternProperties": {"^teacher": _ref("Networks")},
        "definitions": dict(sorted(definitions.items())),
    }
    found = _nullable(whole)
    assert isinstance(found, dict)
    return found


def _ref(name: str) -> Json:
    return {"$ref": f"#/definitions/{name}"}


def _models() -> dict[str, Json]:
    """The typed models as pydantic describes them, in draft 7's words."""
    whole = schema.Spec.model_json_schema(ref_template="#/definitions/{model}")
    definitions = whole.pop("$defs")
    definitions["Spec"] = whole
    return {name: _plain(value) for name, value in definitions.items()}


def _plain(value: Any) -> Any:
    """Without pydantic's titles and own words; a list may be written as its one element."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {
        BOUNDS.get(key, key): {name: _plain(part) for name, part in item.items()}
        if key == "properties"
        else _plain(item)
        for key, item in value.items()
        if not (key == "title" and isinstance(item, str))
    }
    if made.get("type") == "array" and "items" in made:
        outside = {key: made.pop(key) for key in ("default", "description") if key in made}
        return {"anyOf": [made, made["items"]], **outside}
    return made


def _properties(model: type[BaseModel]) -> Json:
    """The properties of a model beside `type` and `kwargs`."""
    told = _models()[model.__name__]["properties"]
    return {key: value for key, value in told.items() if key not in ("type", "kwargs")}


def _component(
    table: Table,
    others: Json,
    model: type[BaseModel],
    pattern: str | None = None,
    *,
    hidden: Collection[str] = (),
    temperature: bool = False,
) -> Json:
    """`{type, kwargs}` where the kwargs follow from the type."""
    rules = []
    for name, target in sorted(table.items()):
        takes = signature(target)
        if takes is not None:
            given = kwargs_schema(takes, hidden=hidden, temperature=temperature)
            then: Json = {"properties": {"kwargs": given}}
            if given.get("required") and not temperature:
                then["required"] = ["kwargs"]
            rules.append(
                {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": then}
            )
    names: Json = _type_names(table)
    if pattern is not None:
        names = {"anyOf": [names, {"type": "string", "pattern": pattern}]}
    return {
        "description": summary_of(model.__doc__),
        "type": "object",
        "required": ["type"],
        "properties": {"type": names, "kwargs": {"type": "object"}, **others},
        "additionalProperties": False,
        "allOf": rules,
    }


def _type_names(table: Table) -> Json:
    """The names of a table, each with what it is."""
    return {
        "anyOf": [
            {"const": name, "description": summary_of(takes.doc if takes is not None else None)}
            for name, target in sorted(table.items())
            for takes in [signature(target)]
        ]
    }


def _module(table: Table) -> Json:
    others: Json = {"name": {"type": "string"}, "prev": {"type": "string"}}
    others["outputs"] = _properties(schema.ModuleSpec)["outputs"]
    made = _component(table, others, schema.ModuleSpec, ANY_MODEL, hidden=("inplanes", "aligned"))
    made["properties"]["type"]["anyOf"].append(
        {"const": "self", "description": "freezes parts of the network"}
    )
    return made


def _dataset(table: Table) -> Json:
    """The dataset's own arguments stand beside the ones that every dataset takes."""
    made = _component(table, {}, schema.DatasetSpec, ANY_TORCHVISION)
    shared = {
        "transformer": {"type": "array", "items": _ref("Transform")},
        "evaluator": _ref("Evaluator"),
        "image_reader": _ref("ImageReader"),
    }
    for rule in made["allOf"]:
        rule["then"]["properties"]["kwargs"]["properties"] |= shared
    made["properties"]["kwargs"] = {"type": "object", "properties": shared}
    return made


def _named(model: Json, names: Iterable[str]) -> Json:
    return {**model, "properties": {**model["properties"], "type": {"enum": sorted(names)}}}


def _job(models: Mapping[str, Json]) -> Json:
    """A job as it is written: losses under `cfgs`, teachers by their names."""
    told = models["Job"]["properties"]
    properties = {key: told[key] for key in JOB_KEYS if key in told}
    properties["adapter"] = _ref("Adapter")
    properties["cfgs"] = {
        "description": "The losses by name, and the method's own options.",
        "type": "object",
        "additionalProperties": {
            "if": {"type": "object", "required": ["type"]},
            "then": _ref("Loss"),
        },
    }
    return {
        "description": models["Job"].get("description", ""),
        "type": "object",
        "properties": properties,
        "patternProperties": {"^teacher": _ref("JobTeacher")},
        "additionalProperties": False,
    }


def _mimic(models: Mapping[str, Json]) -> Json:
    told = models["Mimic"]["properties"]
    shared = {key: told[key] for key in ("stages", "task_loss")}
    shared["mimic_as_jobs"] = {"type": "boolean"}
    job = models["Job"]
    one = {**job, "properties": {**job["properties"], **shared}}
    one["properties"] = {**one["properties"], "mimic_as_jobs": {"enum": [False]}}
    several = {
        "type": "object",
        "required": ["mimic_as_jobs"],
        "properties": {**shared, "mimic_as_jobs": {"enum": [True]}},
        "patternProperties": {"^mimic_job": _ref("Job")},
        "additionalProperties": False,
    }
    return {
        "description": models["Mimic"].get("description", ""),
        "if": {
            "type": "object",
            "properties": {"mimic_as_jobs": {"const": True}},
            "required": ["mimic_as_jobs"],
        },
        "then": several,
        "else": one,
    }


def _nullable(value: Any) -> Any:
    """A key that is given nothing is a key that is not given."""
    if isinstance(value, list):
        return [_nullable(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, item in value.items():
        if key in ("properties", "patternProperties") and isinstance(item, dict):
            made[key] = {name: _or_nothing(_nullable(part)) for name, part in item.items()}
        else:
            made[key] = item if key in ("const", "enum", "default", "required") else _nullable(item)
    return made


def _or_nothing(part: Any) -> Any:
    if not isinstance(part, dict) or set(part) == {"const"} or not part:
        return part
    described = {key: part[key] for key in ("description", "default") if key in part}
    rest = {key: item for key, item in part.items() if key not in described}
    return {"anyOf": [rest, {"type": "null"}], **described} if rest else part
