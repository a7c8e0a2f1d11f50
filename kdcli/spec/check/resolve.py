"""Every name in a spec checked against the tables, every `kwargs` against its code's signature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kdcli.errors import Diagnostic, SpecPath
from kdcli.spec.check.cautions import check_cautions
from kdcli.spec.check.components import BOUND, Tables, check_component, suggest
from kdcli.spec.check.resolve_jobs import check_jobs
from kdcli.spec.check.rules import caches_of, unfit
from kdcli.spec.parse import ParsedSpec, once
from kdcli.spec.schema import DataPart, ModuleSpec, Spec
from kdcli.spec.tables import task_of

__all__ = ["Tables", "check_network", "check_part", "check_references"]


def check_references(parsed: ParsedSpec, tables: Tables) -> list[Diagnostic]:
    """All findings about names and arguments, errors and warnings, with their places."""
    spec = parsed.spec
    found = [
        *check_network(spec.net, ("net",), tables),
        *(d for name, net in spec.teachers.items() for d in check_network(net, ("teachers", name), tables)),
        *check_part(spec.dataset.train, ("dataset", "train"), tables),
        *check_part(spec.dataset.test, ("dataset", "test"), tables),
        *_training(spec, tables),
        *_task(spec, tables),
        *(check_jobs(spec, tables) if spec.distils else ()),
        *check_cautions(spec, tables.losses, tables.hooks),
    ]
    return once(parsed.locate(diagnostic) for diagnostic in found)


# networks


def check_network(modules: Sequence[ModuleSpec], path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    """Check the types, arguments, names and `prev` of one network's modules."""
    earlier: list[str] = []
    for index, module in enumerate(modules):
        here = (*path, index)
        yield from _module(module, here, tables)
        if module.type == "self":
            continue
        if module.name in earlier:
            message = f"a second module is called `{module.name}`"
            yield Diagnostic(code="KD325", message=message, help="rename one", path=(*here, "name"))
        elif "." in module.name or not module.name:
            message = f"`{module.name}` cannot name a module: a name has no dot and is not empty"
            yield Diagnostic(code="KD325", message=message, path=(*here, "name"))
        if module.prev is not None and module.prev not in earlier:
            later = module.prev in [other.name for other in modules]
            message = f"`prev` names `{module.prev}`, which {'comes later' if later else 'is no module here'}"
            help = "modules run in list order" if later else suggest(module.prev, earlier)
            yield Diagnostic(code="KD324", message=message, help=help, path=(*here, "prev"))
        earlier.append(module.name)


def _module(module: ModuleSpec, path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    name = module.type
    if name == "self":
        for key in module.kwargs:
            if key != "freeze_patterns":
                message = f"`self` has no argument `{key}`"
                help = suggest(key, ["freeze_patterns"])
                yield Diagnostic(
                    code="KD320", message=message, help=help, path=(*path, "kwargs", key), on_key=True
                )
        return
    help = "or `torchvision.<model>`, `timm.<model>`, `package.module:attribute`"
    if "." in name:
        package, _, attribute = name.rpartition(".")
        help = f"own code is written `{package}:{attribute}`, with `--plugin {name.split('.')[0]}`"
    yield from check_component(
        module,
        path,
        tables.modules,
        "KD308",
        "module type",
        tables.plugins,
        prefixes=("torchvision.", "timm."),
        hidden=BOUND["module"],
        help=help,
    )


# data and training


def check_part(part: DataPart, path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    """Check dataset, reader, transforms, evaluator, sampler and batch function of one side of the data."""
    kwargs = part.dataset.kwargs
    here = (*path, "dataset")
    yield from check_component(
        part.dataset,
        here,
        tables.datasets,
        "KD310",
        "dataset",
        tables.plugins,
        prefixes=("torchvision.",),
        others=("torchvision.<Dataset>",),
        hidden=("transformer", "evaluator", "image_reader"),
        kwargs=dict(kwargs.model_extra or {}),
    )
    for index, transform in enumerate(kwargs.transformer):
        where = (*here, "kwargs", "transformer", index)
        yield from check_component(
            transform,
            where,
            tables.transforms,
            "KD311",
            "transform",
            tables.plugins,
            prefixes=("torchvision.",),
            others=("torchvision.<name>",),
        )
    loader, sampler = part.dataloader.kwargs, part.batch_sampler.kwargs.sampler
    for component, where, table, code, what in (
        (
            kwargs.image_reader,
            (*here, "kwargs", "image_reader"),
            tables.image_readers,
            "KD313",
            "image reader",
        ),
        (kwargs.evaluator, (*here, "kwargs", "evaluator"), tables.evaluators, "KD315", "evaluator"),
        (sampler, (*path, "batch_sampler", "kwargs", "sampler"), tables.samplers, "KD314", "sampler"),
        (
            loader.batch_fn,
            (*path, "dataloader", "kwargs", "batch_fn"),
            tables.batch_fns,
            "KD312",
            "batch function",
        ),
    ):
        if component is not None:
            yield from check_component(component, where, table, code, what, tables.plugins)


def _task(spec: Spec, tables: Tables) -> Iterator[Diagnostic]:
    """Findings for what the task's networks can't do: be compiled (KD222), be cached (KD550)."""
    if not tables.tasks:
        return
    record = tables.tasks[task_of(tables.tasks, spec.runtime.task_names, spec.dataset.train.dataset.type)]
    if spec.runtime.compile and record.not_compiled is not None:
        path: SpecPath = ("runtime", "compile")
        yield Diagnostic(code="KD222", message=record.not_compiled, help="leave `compile` out", path=path)
    if record.not_cached is not None:
        for name, (path, _) in caches_of(spec).items():
            yield unfit(name, path, record.not_cached, "leave `cache` out")


def _training(spec: Spec, tables: Tables) -> Iterator[Diagnostic]:
    places: list[tuple[SpecPath, Any]] = [(("trainer",), spec.trainer)]
    if spec.mimic is not None and spec.distils:
        places += [(("mimic", "stages", i), stage) for i, stage in enumerate(spec.mimic.stages)]
    for path, place in places:
        for key, names, code in (
            ("optimizer", tables.optimizers, "KD316"),
            ("lr_scheduler", tables.schedulers, "KD317"),
        ):
            component = getattr(place, key)
            if component is not None:
                what = "optimizer" if key == "optimizer" else "scheduler"
                help = f"known: {', '.join(sorted(names))}"
                yield from check_component(
                    component, (*path, key), names, code, what, tables.plugins, help=help
                )
