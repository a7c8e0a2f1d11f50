"""The spec language as JSON Schema (draft 7), for editors; torch-free."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel

from kdcli.reference.editor_words import LOGGER_NAMES, SWITCHES, near_misses, slips_of
from kdcli.reference.keys import argument_meaning, argument_meanings, key_meaning
from kdcli.reference.tables import tables
from kdcli.spec import schema
from kdcli.spec.check.signatures import MethodOption, Parameter, Signature, options_of, signature
from kdcli.spec.form.canonical import JOB_KEYS, OPTION_LEFTOVERS
from kdcli.spec.form.up_keys import CLIPPER, HOOKS
from kdcli.spec.ranges import parsed, range_of
from kdcli.spec.tables import Method, Table, Tables, torch_arguments

Json = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
OWN = r"^[\w.]+:[\w.]+$"
"""Own code, behind `--plugin`: what every table takes beside its names."""
ANY_MODEL = rf"^(torchvision|timm)\..+|{OWN}"
TOP = {"net": "Networks", "mimic": "Mimic"}
"""Keys at the top level whose form is more than their model's."""
BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""Bounds that pydantic leaves in its own words where a validator stands before them."""
ANY_TORCHVISION = rf"^torchvision\..+|{OWN}"

SIMPLE = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
LISTS = ("list", "List", "Sequence", "tuple", "Tuple", "Iterable", "Collection")
MAPPINGS = ("dict", "Dict", "Mapping")
RANGE_FIELDS = {
    "exclusiveMinimum": "more_than",
    "minimum": "at_least",
    "exclusiveMaximum": "less_than",
    "maximum": "at_most",
}
"""The field of kdcli.spec.ranges' Range behind each keyword of JSON Schema."""

NULL: Json = {"type": "null"}
VERBATIM = ("const", "default", "enum", "if", "required")
"""Keywords whose values name no property that may be null."""

LINE_LENGTH = 110
BRANCH = frozenset({"if", "then"})


def schema_text(known: Tables | None = None) -> str:
    """The schema as `kdcli schema` prints it and as it lies beside the samples; known: by default kdcli's tables."""
    return _lines(json_schema(known)) + "\n"


def _lines(value: Any, indent: int = 0) -> str:
    """The value as JSON: a name, a branch, and what is short are one line each, so that diffs stay small."""
    text = json.dumps(value)
    one_line = isinstance(value, dict) and ("const" in value or set(value) == BRANCH)
    if one_line or indent + len(text) <= LINE_LENGTH or not isinstance(value, (dict, list)):
        return text
    if isinstance(value, list):
        parts, (start, end) = [_lines(item, indent + 1) for item in value], "[]"
    else:
        parts = [f"{json.dumps(key)}: {_lines(item, indent + 1)}" for key, item in value.items()]
        start, end = "{}"
    inner = ",\n".join(" " * (indent + 1) + part for part in parts)
    return f"{start}\n{inner}\n{' ' * indent}{end}"


def json_schema(known: Tables | None = None) -> Json:
    """The JSON Schema of a spec file, with the arguments of every type; known: by default kdcli's tables.

    Top-level keys that it does not know are let through, but for those that look like one of its own misspelt: they
    may be anchored building blocks, which `kdcli validate` tells apart from slips.
    """
    known = known or tables()
    definitions = _models()
    definitions |= {
        "Module": _module(known.modules),
        "Networks": {"anyOf": [_ref("Module"), {"type": "array", "items": _ref("Module")}]},
        "Loss": _component(
            "losses", known.losses, _properties(schema.LossSpec), schema.LossSpec, temperature=True
        ),
        "Adapter": {
            "anyOf": [
                {"enum": sorted(known.adapters)},
                _component("adapters", known.adapters, {}, schema.AdapterSpec),
            ]
        },
        "DatasetSpec": _dataset(known.datasets),
        "Transform": _component("transforms", known.transforms, {}, schema.Component, ANY_TORCHVISION),
        "BatchFn": _component("batch_fns", known.batch_fns, {}, schema.Component),
        "ImageReader": _component("image_readers", known.image_readers, {}, schema.Component),
        "Sampler": _component("samplers", known.samplers, {}, schema.Component),
        "Evaluator": _component("evaluators", known.evaluators, {}, schema.Component)
        if isinstance(known.evaluators, Mapping)
        else _ref("Component"),
        "OptimizerSpec": _named("optimizers", definitions["OptimizerSpec"], known.optimizers),
        "SchedulerSpec": _named("schedulers", definitions["SchedulerSpec"], known.schedulers),
        "Cfgs": _cfgs(known.mimickers),
        "Job": _job(definitions, known.mimickers),
    }
    definitions["Mimic"] = _mimic(definitions)
    definitions["LossSpec"], definitions["AdapterSpec"] = _ref("Loss"), _ref("Adapter")
    kwargs = definitions["BatchSamplerKwargs"]["properties"]
    kwargs["sampler"] = _said(schema.BatchSamplerKwargs, "sampler", _ref("Sampler"))
    kwargs = definitions["DataLoaderKwargs"]["properties"]
    kwargs["batch_fn"] = _said(schema.DataLoaderKwargs, "batch_fn", _ref("BatchFn"))
    definitions["DataPart"]["required"] = ["dataset"]
    definitions["Dataset"]["properties"] |= {
        key: definitions["DataPart"]["properties"][key] for key in ("batch_sampler", "dataloader")
    }
    named: Json = {"anyOf": [{"enum": list(LOGGER_NAMES)}, {"type": "string", "pattern": OWN}]}
    loggers = definitions["Trainer"]["properties"]
    loggers["loggers"] = _said(
        schema.Trainer,
        "loggers",
        {"anyOf": [{"type": "array", "items": named}, *named["anyOf"]], "default": []},
    )
    hook = definitions["Hook"]["properties"]
    hook["type"] = _said(schema.Hook, "type", {"enum": sorted({*known.hooks, *HOOKS, CLIPPER})})
    top = definitions.pop("Spec")
    for gone in ("ModuleSpec",):
        definitions.pop(gone, None)
    properties = {key: value for key, value in top["properties"].items() if key != "teachers"}
    properties |= {key: _said(schema.Spec, key, _ref(name)) for key, name in TOP.items()}
    properties["ema"] = _said(schema.Trainer, "ema", _ref("Ema"))
    whole: Json = {
        "$schema": DRAFT,
        "title": "kdcli spec",
        "description": "A distillation (or training) spec of kdcli.",
        "type": "object",
        "required": ["net", "dataset", "trainer"],
        "properties": properties,
        "patternProperties": {
            "^teacher": _said(schema.Spec, "teachers", _ref("Networks")),
            near_misses("teacher", ["teacher"], r"\d*"): False,
            **slips_of(properties),
        },
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
    made: dict[str, Json] = {name: _plain(value) for name, value in definitions.items()}
    for name, described_by in made.items():
        model: type[BaseModel] = getattr(schema, name)
        for key, value in described_by.get("properties", {}).items():
            described_by["properties"][key] = _said(model, key, value)
    return made


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
    kind: str,
    table: Table,
    others: Json,
    model: type[BaseModel],
    pattern: str = OWN,
    *,
    hidden: Collection[str] = (),
    temperature: bool = False,
) -> Json:
    """An object `{type, kwargs}`; one branch for all types that take the same kwargs. kind: the table's name."""
    branches: list[tuple[list[str], Json]] = []
    for name, target in sorted(table.items()):
        takes = signature(target)
        if takes is None:
            continue
        given = kwargs_schema(
            takes,
            partial(argument_meaning, kind, name, takes=takes),
            hidden=hidden,
            temperature=temperature,
        )
        then: Json = {"properties": {"kwargs": given}}
        if given.get("required") and not temperature:
            then["required"] = ["kwargs"]
        same = next((names for names, other in branches if other == then), None)
        if same is None:
            branches.append(([name], then))
        else:
            same.append(name)
    rules = [
        {"if": {"properties": {"type": {"enum": names}}, "required": ["type"]}, "then": then}
        for names, then in branches
    ]
    names: Json = {"anyOf": [_type_names(table), {"type": "string", "pattern": pattern}]}
    return {
        "description": summary_of(model.__doc__),
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": _said(model, "type", names),
            "kwargs": _said(model, "kwargs", {"type": "object"}),
            **others,
        },
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
    others = _properties(schema.ModuleSpec)
    made = _component("modules", table, others, schema.ModuleSpec, ANY_MODEL, hidden=("inplanes", "aligned"))
    made["properties"]["type"]["anyOf"].append(
        {"const": "self", "description": "freezes parts of the network"}
    )
    return made


def _dataset(table: Table) -> Json:
    """The dataset's own arguments stand beside the ones that every dataset takes."""
    made = _component("datasets", table, {}, schema.DatasetSpec, ANY_TORCHVISION)
    shared = {
        "transformer": {"type": "array", "items": _ref("Transform")},
        "evaluator": _ref("Evaluator"),
        "image_reader": _ref("ImageReader"),
    }
    shared = {key: _said(schema.DatasetKwargs, key, part) for key, part in shared.items()}
    for rule in made["allOf"]:
        rule["then"]["properties"]["kwargs"]["properties"] |= shared
    made["properties"]["kwargs"]["properties"] = shared
    return made


def _named(kind: str, model: Json, names: Collection[str]) -> Json:
    """A component of torch's: its names, and the ranges of arguments; one that differs by name may be any of these."""
    hints: dict[str, list[Json]] = {}
    for name in sorted(names):
        for argument, hint in torch_arguments(name).items():
            given = annotation_schema(parsed(hint))
            if given not in hints.setdefault(argument, []):
                hints[argument].append(given)
    meanings = argument_meanings(kind)
    kwargs: Json = {
        argument: _with(meanings.get(argument), given[0] if len(given) == 1 else {"anyOf": given})
        for argument, given in sorted(hints.items())
    }
    kwargs |= {
        argument: _with(meaning, {"type": "boolean"})
        for argument, meaning in meanings.items()
        if argument not in kwargs and argument in SWITCHES
    }
    properties = {**model["properties"]}
    properties["type"] = _with(properties["type"]["description"], _names_or_own(names))
    properties["kwargs"] = {**properties["kwargs"], "properties": kwargs}
    # Another torch may have other arguments: what is flagged is what looks like one of these, misspelt.
    flagged = {"properties": {"kwargs": {"patternProperties": slips_of(kwargs)}}}
    torchs = {"properties": {"type": {"enum": sorted(names)}}, "required": ["type"]}
    return {**model, "properties": properties, "allOf": [{"if": torchs, "then": flagged}]}


def _names_or_own(names: Iterable[str]) -> Json:
    return {"anyOf": [{"enum": sorted(names)}, {"type": "string", "pattern": OWN}]}


def _job(models: Mapping[str, Json], methods: Mapping[str, Method]) -> Json:
    """A job as it is written: losses under `cfgs`, teachers by their names."""
    told = models["Job"]["properties"]
    properties = {key: told[key] for key in JOB_KEYS if key in told}
    properties["adapter"] = _said(schema.Job, "adapter", _ref("Adapter"))
    properties["cfgs"] = {
        "description": "The losses by name, and the method's own options.",
        "type": "object",
    }
    properties["mimic_ins_type"] = {
        "anyOf": [_type_names(methods), {"type": "string", "pattern": OWN}],
        "default": told["mimic_ins_type"]["default"],
        "description": told["mimic_ins_type"]["description"],
    }
    return {
        "description": models["Job"].get("description", ""),
        "type": "object",
        "properties": properties,
        "patternProperties": {"^teacher": _said(schema.Job, "teachers", _ref("JobTeacher"))},
        "additionalProperties": False,
        "allOf": [_ref("Cfgs")],
    }


def _cfgs(methods: Mapping[str, Method]) -> Json:
    """What may stand under `cfgs`, as the job's `mimic_ins_type` says; of a job that names none, `base`."""
    rules = []
    for name, method in sorted(methods.items()):
        known = {loss: _with(f"A loss of {name}.", _ref("Loss")) for loss in method.losses}
        known |= {option.name: option_schema(option) for option in options_of(method.options).values()}
        known |= {
            key: {"description": f"no effect: {help}"} for key, help in OPTION_LEFTOVERS.get(name, {}).items()
        }
        given: Json = {"properties": known, "additionalProperties": False}
        if method.extra_losses:
            given["additionalProperties"] = _ref("Loss")
        named = {"properties": {"mimic_ins_type": {"const": name}}, "required": ["mimic_ins_type"]}
        if name == schema.Job.model_fields["mimic_ins_type"].default:
            named.pop("required")
        rules.append({"if": named, "then": {"properties": {"cfgs": given}}})
    return {"description": "What stands under `cfgs` of each mimic method.", "allOf": rules}


def _mimic(models: Mapping[str, Json]) -> Json:
    told = models["Mimic"]["properties"]
    shared = {key: told[key] for key in ("stages", "task_loss")}
    shared["mimic_as_jobs"] = {
        "type": "boolean",
        "description": "Whether there are several jobs, `mimic_job0` and so on.",
    }
    job = models["Job"]
    one = {**job, "properties": {**job["properties"], **shared}}
    one["properties"] = {**one["properties"], "mimic_as_jobs": {**shared["mimic_as_jobs"], "enum": [False]}}
    several = {
        "type": "object",
        "required": ["mimic_as_jobs"],
        "properties": {**shared, "mimic_as_jobs": {**shared["mimic_as_jobs"], "enum": [True]}},
        "patternProperties": {"^mimic_job": _said(schema.Mimic, "jobs", _ref("Job"))},
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
    """The schema with null allowed for every property: a key that is given nothing is a key that is not given."""
    if isinstance(value, list):
        return [_nullable(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, item in value.items():
        if key in ("properties", "patternProperties") and isinstance(item, dict):
            made[key] = {name: _or_nothing(_nullable(part)) for name, part in item.items()}
        else:
            made[key] = item if key in VERBATIM else _nullable(item)
    return made


def _or_nothing(part: Any) -> Any:
    """The schema of a property with null allowed beside what it takes, in as few words as JSON Schema has."""
    if not isinstance(part, dict) or set(part) == {"const"} or not part:
        return part
    described = {key: part[key] for key in ("description", "default") if key in part}
    rest = {key: item for key, item in part.items() if key not in described}
    if set(rest) == {"anyOf"}:
        flat = [one for one in _alternatives(rest) if one != NULL]
        if len(flat) > 1:
            return {"anyOf": [*flat, NULL], **described}
        rest = flat[0]
    if isinstance(rest.get("type"), str) and not {"enum", "const"} & set(rest):
        return {**rest, "type": [rest["type"], "null"], **described}
    return {"anyOf": [rest, NULL], **described} if rest else part


def _alternatives(part: Json) -> Iterable[Json]:
    """The members of nested `anyOf`s."""
    if set(part) == {"anyOf"}:
        for inner in part["anyOf"]:
            yield from _alternatives(inner)
    else:
        yield part


def kwargs_schema(
    takes: Signature,
    meaning: Callable[[str], str | None] = lambda name: None,
    *,
    hidden: Collection[str] = (),
    temperature: bool = False,
) -> Json:
    """An object with every argument a spec may give; meaning: of one; temperature: `T` has that second name."""
    known = {name: p for name, p in takes.kwargs.items() if name not in hidden}
    properties = {name: _with(meaning(name), _argument(parameter)) for name, parameter in known.items()}
    if temperature and "T" in properties:
        properties["temperature"] = properties["T"]
    made: Json = {"type": "object", "properties": properties}
    if not takes.opened:
        made["additionalProperties"] = False
    required = [name for name, parameter in known.items() if parameter.required]
    if required:
        made["required"] = required
    return made


def _said(model: type[BaseModel], key: str, described_by: Json) -> Json:
    """The schema of a key with what the key means."""
    return _with(key_meaning(model, key), described_by)


def _with(description: str | None, described_by: Json) -> Json:
    return described_by if description is None else {**described_by, "description": description}


def summary_of(doc: str | None) -> str:
    """The first paragraph of a docstring."""
    return " ".join((doc or "").partition("\n\n")[0].split())


def option_schema(option: MethodOption) -> Json:
    """The schema of one option of a mimic method."""
    return {**_argument(option), "description": option.meaning}


def _argument(parameter: Parameter) -> Json:
    made = {} if parameter.annotation is None else annotation_schema(parameter.annotation)
    default = parameter.default
    if not parameter.required and isinstance(default, (bool, int, float, str, list, dict)):
        made = {**made, "default": default}
    return made


def annotation_schema(node: ast.expr) -> Json:
    """What YAML values an annotation takes; one that is not understood takes all."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts = [annotation_schema(node.left), annotation_schema(node.right)]
        return {} if {} in parts else {"anyOf": parts}
    if isinstance(node, ast.Constant) and node.value is None:
        return {"type": "null"}
    if isinstance(node, ast.Subscript):
        return _generic(node)
    name = ast.unparse(node).rsplit(".", 1)[-1]
    if name in SIMPLE:
        return {"type": SIMPLE[name]}
    if name in LISTS:
        return {"type": "array"}
    return {"type": "object"} if name in MAPPINGS else {}


def _generic(node: ast.Subscript) -> Json:
    name = ast.unparse(node.value).rsplit(".", 1)[-1]
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return {"enum": [ast.literal_eval(part) for part in parts]}
    if name in LISTS:
        items = [annotation_schema(part) for part in parts if not _is_ellipsis(part)]
        return {"type": "array", "items": items if any(item != items[0] for item in items) else items[0]}
    if name in MAPPINGS:
        return {"type": "object"}
    if name == "Optional":
        return {"anyOf": [annotation_schema(parts[0]), {"type": "null"}]}
    if name == "Union":
        found = [annotation_schema(part) for part in parts]
        return {} if {} in found else {"anyOf": found}
    if name == "Annotated":
        bounds = range_of(node)
        told = {key: getattr(bounds, bound, None) for key, bound in RANGE_FIELDS.items()}
        return {**annotation_schema(parts[0]), **{k: v for k, v in told.items() if v is not None}}
    return {}


def _is_ellipsis(part: ast.expr) -> bool:
    return isinstance(part, ast.Constant) and part.value is Ellipsis
