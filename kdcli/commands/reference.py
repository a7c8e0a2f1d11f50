"""`kdcli explain`, `methods`, `docs`, `schema`, `doctor`: what kdcli knows of words, losses, the spec, the machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from kdcli.commands.option_fields import COMMANDS, CommandParameter, parameters
from kdcli.disk import entries, exists, filled, is_file, is_folder, text_in
from kdcli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from kdcli.commands.help_options import (
        DocsOptions,
        DoctorOptions,
        ExplainOptions,
        MethodsOptions,
        SchemaOptions,
    )
    from kdcli.reference.words import TypePage


def explain(options: ExplainOptions) -> None:
    """Print all that a word means: as a code, as a type, as a key; else as an argument. Without a word, list them."""
    from kdcli.reference.keys import pages_of
    from kdcli.reference.words import arguments_named, subjects, types_named, words
    from kdcli.report.console import screen_width, wants_colour, write
    from kdcli.report.reference_text import arguments_text, keys_text, subjects_text

    width, colour = screen_width(sys.stdout), wants_colour(sys.stdout)
    word = options.word
    if word is None:
        write(subjects_text(subjects(), width=width, colour=colour))
        return
    pages = [*_code_pages(word, width, colour), *_type_pages(types_named(word), width, colour)]
    if keys := pages_of(word):
        pages.append(keys_text(keys, width=width, colour=colour))
    if not pages and (arguments := arguments_named(word)):
        pages.append(arguments_text(word, arguments, width=width, colour=colour))
    if not pages:
        known = list(words())
        help = did_you_mean(word, known) or did_you_mean(word.upper(), known)
        raise UsageError.of(
            f"kdcli has no word `{word}`", help or "`kdcli explain` alone lists what there is"
        )
    write("\n".join(pages))


def _code_pages(word: str, width: int | None, colour: bool) -> list[str]:
    from kdcli.codes import CODES
    from kdcli.report.reference_text import explanation_text

    name = word.upper()
    return [explanation_text(name, CODES[name], width=width, colour=colour)] if name in CODES else []


def _type_pages(types: Sequence[TypePage], width: int | None, colour: bool) -> list[str]:
    from kdcli.report.reference_text import type_text

    pages = []
    for one in types:
        if one.kind == "loss":
            pages.append(_loss_page(one.name, width, colour))
        elif one.kind == "mimic method":
            pages.append(_method_page(one.name, width, colour))
        else:
            pages.append(type_text(one, width=width, colour=colour))
    return pages


def _loss_page(name: str, width: int | None, colour: bool) -> str:
    from kdcli.losses.parts.describe import describe
    from kdcli.reference.methods import fragment
    from kdcli.report.reference_text import loss_text

    return loss_text(describe(name), fragment(name), width=width, colour=colour)


def _method_page(name: str, width: int | None, colour: bool) -> str:
    from kdcli.reference.methods import method_fragment, method_of
    from kdcli.report.reference_text import method_text

    return method_text(method_of(name), method_fragment(name), width=width, colour=colour)


def methods(options: MethodsOptions) -> None:
    """Print all losses and mimic methods, or one of them with its arguments and a block to paste."""
    from kdcli.distill.mimickers import MIMICKERS
    from kdcli.losses import LOSSES
    from kdcli.losses.parts.describe import Description, describe
    from kdcli.reference.methods import method_of
    from kdcli.report.console import screen_width, wants_colour, write
    from kdcli.report.reference_text import losses_text
    from kdcli.spec.plugins import admit, is_own, load_own

    name, width, colour = options.name, screen_width(sys.stdout), wants_colour(sys.stdout)
    if name is None:
        known = [method_of(one) for one in MIMICKERS]
        by_kind: dict[str, list[Description]] = {}
        for loss, record in LOSSES.items():
            by_kind.setdefault(record.kind, []).append(describe(loss))
        write(losses_text(by_kind, known, width=width, colour=colour))
    elif name in LOSSES:
        write(_loss_page(name, width, colour))
    elif name in MIMICKERS:
        write(_method_page(name, width, colour))
    elif is_own(name):
        made = load_own(name, options.plugins, ())
        admit(name)
        if hasattr(made, "losses_of"):
            write(_method_page(name, width, colour))
        else:
            write(_loss_page(name, width, colour))
    else:
        help = did_you_mean(name, [*LOSSES, *MIMICKERS])
        raise UsageError.of(f"there is no loss or mimic method `{name}`", help)


def docs(options: DocsOptions) -> None:
    """Write the site into a folder that is new, empty, or such a site already; any other raises UsageError."""
    from kdcli.commands.samples import sample_specs, summary_of
    from kdcli.report.console import write

    try:
        from kdcli.report.site import INDEX, MADE, CommandPage, write_site, written_pages
    except ModuleNotFoundError as error:
        if error.name not in ("markdown_it", "pygments"):
            raise
        raise UsageError.of(
            f"{error.name} is not installed", "install it: `pip install 'kdcli[docs]'`"
        ) from error

    folder = options.folder
    if exists(folder) and not is_folder(folder):
        raise UsageError.of(f"{folder} is a file", "name a folder that is new or empty")
    if is_folder(folder) and entries(folder) and not is_file(folder / INDEX):
        raise UsageError.of(f"{folder} is not empty", "name a folder that is new or empty")
    pages = [
        CommandPage(
            name=name,
            help=" ".join((fields.__doc__ or "").split("\n\n")[0].split()),
            usage=_usage(name, parameters(fields)),
            rows=tuple(_parameter_row(one) for one in parameters(fields)),
        )
        for name, fields in COMMANDS.items()
    ]
    samples = {name: (summary_of(path), text_in(path)) for name, path in sample_specs().items()}
    with filled(folder, [*MADE, *(page.path for page in written_pages())]) as beside:
        count = write_site(beside, pages, samples)
    write(f"{folder / 'index.html'}  {count:,} pages; open it in a browser\n")


def _usage(name: str, known: Sequence[CommandParameter]) -> str:
    """`kdcli train SPEC [KEY=VALUE]... [OPTIONS]`."""
    words = []
    for one in known:
        if one.argument is not None:
            word = one.argument.metavar or one.name.upper()
            word = word if one.default is MISSING or word.startswith("[") else f"[{word}]"
            words.append(f"{word}..." if one.repeated and not word.endswith("...") else word)
    return " ".join(["kdcli", name, *words, "[OPTIONS]"])


def _parameter_row(one: CommandParameter) -> tuple[str, str, str]:
    """How an argument or option is written, its default, what it does."""
    if one.option is None:
        assert one.argument is not None
        return one.argument.metavar or one.name.upper(), _default(one.default), one.argument.help
    values = " or ".join(map(str, _choices(one.type)))
    flags = ", ".join(one.flags)
    takes = "" if one.type is bool else f" {one.option.metavar or values or one.name.upper()}"
    if one.type is bool and not one.option.flags:
        flags += f", --no-{one.flags[0].removeprefix('--')}"
    help = one.option.help or ""
    if one.argument is not None:
        return f"{one.argument.metavar or one.name.upper()}, {flags}{takes}", "", one.argument.help
    return f"{flags}{takes}", _default(one.default), help


def _choices(type_: Any) -> tuple[object, ...]:
    """The values of a Literal, also of one that may be None."""
    if get_origin(type_) is Literal:
        return get_args(type_)
    return next((values for part in get_args(type_) if (values := _choices(part))), ())


def _default(value: object) -> str:
    shown = {MISSING: "has to be given", None: "", (): "", False: "off", True: "on"}
    return shown[value] if isinstance(value, (bool, tuple)) or value in (None, MISSING) else str(value)


def schema(_: SchemaOptions) -> None:
    """Print the JSON Schema of the spec language, for editors."""
    from kdcli.reference.schema_json import schema_text
    from kdcli.report.console import write

    write(schema_text())


def doctor(options: DoctorOptions) -> None:
    """Print versions, hardware and installed extras, as text or JSON."""
    from kdcli.reference.doctor import diagnose
    from kdcli.report.console import screen_width, write

    facts = diagnose(Path())
    as_json = options.format == "json"
    write(json.dumps(facts, indent=2) + "\n" if as_json else doctor_text(facts, screen_width(sys.stdout)))


def _package(found: str | None, broken: str | None) -> str:
    if found is None:
        return "MISSING"
    return found if broken is None else f"{found}, BROKEN: {broken}"


def _torch_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What only torch knows: nothing where it can't be imported."""
    from kdcli.report.quantities import size

    given, weights = facts["cuda"], facts["weights"]
    if given is None:
        return []
    devices = [
        f"{d['name']}, {size(d['memory_bytes'])}, capability {d['capability']}"
        f" ({'bf16 and TF32' if d['bf16'] else 'neither bf16 nor TF32 in hardware'})"
        for d in given["devices"]
    ]
    built = given["built_for"]
    cuda = "; ".join(devices) or ("no device is visible" if built else "torch is built without CUDA")
    libraries = [
        f"{label} {given[key]}"
        for label, key in (("driver", "driver"), ("cuDNN", "cudnn"), ("NCCL", "nccl"))
        if given[key] is not None
    ]
    if built:
        libraries.insert(0, f"torch is built for CUDA {built}")
    if given["visible"] is not None:
        libraries.append(f"CUDA_VISIBLE_DEVICES={given['visible']}")
    return [
        ("cuda", cuda + (f" ({', '.join(libraries)})" if libraries else "")),
        ("weights", f"{weights['torch']} (torchvision, timm), {weights['hub']} (hf, timm)"),
        ("hub", weights["endpoint"] + (" (offline mode is on)" if weights["offline"] else "")),
    ]


def doctor_text(facts: dict[str, Any], screen: int | None = None) -> str:
    """Facts of `diagnose` as text, one a line; for an extra, what is missing. screen: its columns."""
    from kdcli.report.console import wrapped_line
    from kdcli.report.quantities import size

    cpu = facts["cpu"]
    threads = f"{cpu['usable']} of {cpu['cores']} cores usable"
    if cpu["torch_threads"] is not None:
        threads += f", torch uses {cpu['torch_threads']}"
    if cpu["OMP_NUM_THREADS"]:
        threads += f" (OMP_NUM_THREADS={cpu['OMP_NUM_THREADS']})"
    rows = [
        ("kdcli", facts["kdcli"] + (" (from a checkout)" if facts["editable"] else "")),
        ("python", facts["python"]),
        ("platform", facts["platform"]),
        *((name, _package(found, facts["broken"].get(name))) for name, found in facts["packages"].items()),
        ("cpu", threads),
        *_torch_rows(facts),
        ("free disk here", size(facts["disk_free_bytes"])),
    ]
    for extra, parts in facts["extras"].items():
        missing = [name for name, found in parts.items() if found is None]
        there = ", ".join(f"{name} {found}" for name, found in parts.items() if found is not None)
        lacking = f"absent: pip install 'kdcli[{extra}]'" if missing else ""
        rows.append((f"extra {extra}", "; ".join(part for part in (there, lacking) if part)))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "".join(f"{wrapped_line(line, screen, ' ' * (width + 2))}\n" for line in lines)
