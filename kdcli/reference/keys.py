"""What keys and arguments of the language mean, for `kdcli explain` and for editors; torch-free.

The words are in keys.yaml and arguments.yaml beside this file, and in the docstrings of types as `name: ...`; types,
defaults and ranges are read from the code that takes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from kdcli.disk import text_in
from kdcli.spec import schema
from kdcli.spec.check.signatures import Signature

HERE = Path(__file__).parent

BOUNDS = {
    "exclusiveMinimum": "more than",
    "gt": "more than",
    "minimum": "at least",
    "ge": "at least",
    "exclusiveMaximum": "less than",
    "lt": "less than",
    "maximum": "at most",
    "le": "at most",
}
"""Keywords of JSON Schema in words, and pydantic's own where a validator stands before them."""

JOB = "mimic"
"""Where a job's keys stand, unless there are several jobs."""

PLACES: Mapping[tuple[type[BaseModel], str], str] = {
    (schema.Spec, "teachers"): "teacherN",
    (schema.Mimic, "jobs"): "mimic_jobN",
    (schema.Job, "teachers"): "teacherN",
    (schema.Job, "losses"): "cfgs.LOSS",
    (schema.Job, "options"): "cfgs.OPTION",
}
"""Fields that a file writes as keys with a name that the user chooses."""

NO_PAGES = (schema.Component, schema.Hook)
"""Models of which a type is chosen from a table: that type has the page."""

_DESCRIBED = re.compile(r"(?:^|(?<=[.;:)`\]] ))([A-Za-z_]\w*(?:(?:, | and )[A-Za-z_]\w*)*): ")
"""`name: ` or `one, other: ` at the start of a clause of a docstring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPage:
    """One key of the language in words. keys: those below it; default: as YAML writes it, None where it is required."""

    path: str
    meaning: str
    takes: str
    default: str | None
    example: str
    keys: tuple[str, ...]


def key_meaning(model: type[BaseModel], field: str) -> str:
    """What a key of a typed model means."""
    return str(_entry(model, field)[1])


@cache
def key_pages() -> dict[str, KeyPage]:
    """The pages of all keys by path, in the order of the language."""
    return {page.path: page for page in _pages(schema.Spec, (), set())}


def pages_of(word: str) -> list[KeyPage]:
    """The pages that a word or a path means: `decay`, `ema.kwargs.decay`, `mimic.mimic_job0.teacher1.cache`.

    A path whose first parts are unknown (of a spec's own anchors) means what its last parts do, two at least.
    """
    parts = _normalized(word.split("."))
    for start in range(len(parts)):
        wanted = parts[start:]
        if start and len(wanted) == 1:
            break
        pages = [page for page in key_pages().values() if _ends(page.path, wanted)]
        exact = [page for page in pages if page.path == ".".join(wanted)]
        if pages:
            return exact or pages
    return []


def _ends(path: str, wanted: Sequence[str]) -> bool:
    """Whether the last parts of a path are these; the chosen name behind `cfgs` may be left out."""
    parts = path.split(".")
    return parts[-len(wanted) :] == wanted or (
        parts[-1] in ("LOSS", "OPTION") and parts[-1 - len(wanted) : -1] == wanted
    )


def argument_meanings(table: str) -> dict[str, str]:
    """What arguments of a table's types mean, by name or `type.name`, beside what docstrings say."""
    return _words("arguments.yaml").get(table, {})


def argument_meaning(table: str, type_name: str, argument: str, takes: Signature) -> str | None:
    """What an argument of a type means: what its docstring says of it, else what arguments.yaml does."""
    known = argument_meanings(table)
    own = known.get(f"{type_name}.{argument}") or described(takes.doc).get(argument)
    return own or known.get(argument)


def described(doc: str | None) -> dict[str, str]:
    """What a docstring says of arguments as `name: ...`, up to the end of that sentence."""
    found: dict[str, str] = {}
    for paragraph in (doc or "").split("\n\n")[1:]:
        text = " ".join(paragraph.split("\nSource:")[0].split())
        marks = list(_DESCRIBED.finditer(text))
        for mark, following in zip_longest(marks, marks[1:]):
            clause = text[mark.end() : None if following is None else following.start()]
            if "models/layers.py" in clause:
                continue  # where the code is: arguments.yaml says what it does
            sentence = re.split(r"(?<=[.;]) (?=[A-Z`])|; ", clause.strip())[0].rstrip(".;")
            for name in re.split(", | and ", mark[1]):
                found[name] = f"{sentence[:1].upper()}{sentence[1:]}."
    return found


@cache
def _words(name: str) -> dict[str, dict[str, Any]]:
    """One of the two files, by table or model."""
    return dict(yaml.safe_load(text_in(HERE / name)))


def _entry(model: type[BaseModel], field: str) -> list[Any]:
    """[example, meaning] of a key; of one that a model inherits, the base's."""
    entries = _words("keys.yaml")
    for one in model.__mro__:
        if field in entries.get(one.__name__, {}):
            return list(entries[one.__name__][field])
    raise KeyError(f"{model.__name__}.{field} is not in keys.yaml")


def _pages(model: type[BaseModel], above: tuple[str, ...], seen: set[type]) -> Iterator[KeyPage]:
    """The pages of a model's keys and of the models below, each model once."""
    seen.add(model)
    described_by = model.model_json_schema(ref_template="{model}")
    for field, info in model.model_fields.items():
        path = (*above, *_place(model, field).split("."))
        below = [one for one in _models_in(info.annotation) if one not in NO_PAGES]
        example, meaning = _entry(model, field)
        inside = below[0] if below else None
        yield KeyPage(
            path=".".join(path),
            meaning=meaning,
            takes=_in_words(described_by["properties"][field]),
            default=None if info.is_required() else _yaml(_default(described_by["properties"][field])),
            example="" if example == "{}" else _snippet(path, example),
            keys=() if inside is None else tuple(_keys_of(inside)),
        )
        for one in below:
            if one not in seen:
                yield from _pages(one, above if one is schema.Job else path, seen)


def _place(model: type[BaseModel], field: str) -> str:
    """A field as a file writes it."""
    return PLACES.get((model, field), field)


def _keys_of(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a model as a file writes them; those of one job stand beside those of `mimic`."""
    for one in (schema.Job, schema.Mimic) if model is schema.Mimic else (model,):
        yield from (_place(one, field) for field in one.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The typed models in an annotation, as in `dict[str, Job] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _default(described_by: Mapping[str, Any]) -> Any:
    return described_by.get("default", {} if "$ref" in described_by else None)


def _in_words(described_by: Mapping[str, Any]) -> str:
    """A JSON Schema in words: `number, at least 0 and less than 1`."""
    if "anyOf" in described_by:
        parts = [_in_words(part) for part in described_by["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(part for part in parts if part))
    if "enum" in described_by:
        return " or ".join(map(str, described_by["enum"]))
    if "const" in described_by:
        return _yaml(described_by["const"])
    if "$ref" in described_by or "allOf" in described_by:
        return "a mapping"
    kinds = {"object": "a mapping", "boolean": "true or false", "integer": "a whole number"}
    kinds |= {"number": "a number", "string": "text"}
    if described_by.get("type") == "array":
        return f"a list of: {_in_words(described_by.get('items', {}))}"
    bounds = [f"{words} {described_by[key]:.12g}" for key, words in BOUNDS.items() if key in described_by]
    return ", ".join(
        part for part in (kinds.get(described_by.get("type", ""), ""), " and ".join(bounds)) if part
    )


def _yaml(value: Any) -> str:
    """A value as YAML writes it, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return "none" if value is None else text.removesuffix("\n").removesuffix("\n...")


def _snippet(path: Sequence[str], example: Any) -> str:
    """A piece of a spec with the example in its place. An example of a place with a chosen name brings that name."""
    lines = list(path)
    if lines[-1] in ("teacherN", "mimic_jobN", "LOSS", "OPTION"):
        lines.pop()
        value = str(example)
    else:
        key = lines.pop()
        value = f"{key}: {example if isinstance(example, str) else _yaml(example)}"
    names = {"teacherN": "teacher0", "mimic_jobN": "mimic_job0", "LOSS": "loss"}
    text = [f"{'  ' * depth}{names.get(part, part)}:" for depth, part in enumerate(lines)]
    if lines == ["net"]:
        return f"net:\n- {value}"
    return "\n".join([*text, f"{'  ' * len(lines)}{value}"])


def _normalized(parts: Sequence[str]) -> list[str]:
    """A path as pages have it: no numbers of lists, jobs' keys below `mimic`, teachers without their numbers."""
    path = [re.sub(r"\[\d+\]$", "", part) for part in parts if not part.isdigit()]
    if path[:1] == ["ema"]:
        path.insert(0, "trainer")
    if path[:1] == ["dataset"] and len(path) > 1:
        if path[1] in ("batch_sampler", "dataloader"):
            path.insert(1, "train")
        elif path[1] == "test" and len(path) > 2:
            path[1] = "train"
    if path[:1] == [JOB] and len(path) > 2 and path[1].startswith("mimic_job"):
        path.pop(1)
    own = {key for model in _words("keys.yaml").values() for key in model}
    path = ["teacherN" if part.startswith("teacher") and part not in own else part for part in path]
    path = ["mimic_jobN" if part.startswith("mimic_job") else part for part in path]
    if path[:2] == [JOB, "cfgs"] and len(path) > 2:
        path[2] = "LOSS"
    if path[0] == "teacherN" and len(path) > 1 and path[1] not in schema.JobTeacher.model_fields:
        path[0] = "net"
    if path[0] == "net" and len(path) > 2:
        # The name of a module stands between, as in an override.
        path.pop(1)
    return path
