"""Every name in a spec checked against the tables, every `kwargs` against its code's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from kdcli.errors import Diagnostic, SpecError, SpecPath
from kdcli.spec.check.cautions import check_cautions
from kdcli.spec.check.components import (
    BOUND,
    check_against,
    check_arguments,
    check_component,
    check_self,
    check_torch_arguments,
    check_type,
    choices_of,
    or_torchvision,
    weight_below_0,
)
from kdcli.spec.check.labels import check_labels_of_loss
from kdcli.spec.check.rules import check_task, negative_help
from kdcli.spec.check.signatures import Signature, options_of, signature
from kdcli.spec.parse import ParsedSpec, once
from kdcli.spec.plugins import is_own, lookup, suggest
from kdcli.spec.ranges import Range, Width, parsed
from kdcli.spec.schema import DataPart, Job, LossSpec, ModuleSpec, Spec
from kdcli.spec.sweep import check_sweep
from kdcli.spec.tables import Loss, Method, NoOptions, Tables, Target

CALLED_WITH = (
    *("student", "teacher", "mask", "student_logits", "teacher_logits", "teacher_weights"),
    *("labels", "mixed_labels", "indices", "step", "epoch"),
)
"""What the positional parameters of a loss may be called: each is bound by its name."""

MADE_FROM = (
    *("student_shape", "teacher_shape", "num_samples", "sample_labels", "num_classes"),
    *("teacher_classifier", "teacher_norms"),
)
"""The same of the constructor of a loss that is a class."""

FOREIGN = ("torchvision.", "timm.")
"""How the names of networks of other packages begin."""

FOREIGN_ARGUMENTS = {"num_classes": Width, "in_chans": Width}
"""What all of them call so."""

HEADLESS = Annotated[int, Range(at_least=0, at_most=1048576)]
"""timm's `num_classes`: 0 is a network without a head, whose output is the pooled vector."""


def check_references(parsed: ParsedSpec, tables: Tables) -> list[Diagnostic]:
    """All findings about names and arguments, errors and warnings, with their places."""
    spec = parsed.spec
    findings = [
        *check_network(spec.net, ("net",), tables),
        *(d for name, net in spec.teachers.items() for d in check_network(net, ("teachers", name), tables)),
        *(
            d
            for side, part in spec.dataset.parts.items()
            for d in check_part(part, ("dataset", *side), tables)
        ),
        *_training(spec, tables),
        *check_task(spec, tables.tasks),
        *(check_jobs(spec, tables) if spec.distils and spec.mimic is not None else ()),
        *check_cautions(spec, tables.losses, tables.hooks),
    ]
    known = {(one.code, one.message) for one in findings}
    findings += [
        one
        for one in check_sweep(parsed, tables.losses, lambda trial: check_references(trial, tables))
        if (one.code, one.message) not in known
    ]
    return once(parsed.locate(diagnostic) for diagnostic in findings)


# networks


def check_network(modules: Sequence[ModuleSpec], path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    """Check the types, arguments, names and `prev` of one network's modules."""
    earlier: list[str] = []
    for index, module in enumerate(modules):
        module_path = (*path, index)
        yield from _module(module, module_path, tables)
        if module.type == "self":
            continue
        if module.name in earlier:
            message = f"a second module is called `{module.name}`"
            yield Diagnostic(code="KD325", message=message, help="rename one", path=(*module_path, "name"))
        elif "." in module.name or not module.name:
            message = f"`{module.name}` cannot name a module: a name has no dot and is not empty"
            yield Diagnostic(code="KD325", message=message, path=(*module_path, "name"))
        if module.prev is not None and module.prev not in earlier:
            later = module.prev in [other.name for other in modules]
            message = f"`prev` names `{module.prev}`, which {'comes later' if later else 'is no module here'}"
            help = "modules run in list order" if later else suggest(module.prev, earlier)
            yield Diagnostic(code="KD324", message=message, help=help, path=(*module_path, "prev"))
        earlier.append(module.name)


def _module(module: ModuleSpec, path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    name = module.type
    if name == "self":
        yield from check_self(module.kwargs, path)
        return
    if name == "peer":
        yield from _network_of_peer(module, path, tables)
    if name.startswith(FOREIGN):
        for key, hint in FOREIGN_ARGUMENTS.items():
            if module.kwargs.get(key) is not None:
                if key == "num_classes" and name.startswith("timm."):
                    hint = HEADLESS
                yield from check_type(key, module.kwargs[key], parsed(hint), (*path, "kwargs"), f"`{name}`")
    help = "or `torchvision.<model>`, `timm.<model>`, `package.module:attribute`"
    if "." in name:
        package, _, attribute = name.rpartition(".")
        help = f"own code is written `{package}:{attribute}`, with `--plugin {name.split('.')[0]}`"
    for finding in check_component(
        module,
        path,
        tables.modules,
        "KD308",
        "module type",
        tables.plugins,
        prefixes=FOREIGN,
        hidden=BOUND["module"],
        help=help,
    ):
        yield or_torchvision(finding, name)


def _network_of_peer(module: ModuleSpec, path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    """Check the arguments of the whole network inside a `peer`; its name is checked as it is built."""
    network, kwargs = module.kwargs.get("network"), module.kwargs.get("kwargs")
    target = tables.modules.get(network) if isinstance(network, str) else None
    if target is not None and isinstance(kwargs, dict):
        named, inside = f"`{network}`", (*path, "kwargs")
        yield from check_against(target, kwargs, inside, named, "module type", BOUND["module"])


# data and training


def check_part(part: DataPart, path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    """Check dataset, reader, transforms, evaluator, sampler and batch function of one side of the data."""
    kwargs = part.dataset.kwargs
    dataset_path = (*path, "dataset")
    yield from check_component(
        part.dataset,
        dataset_path,
        tables.datasets,
        "KD310",
        "dataset",
        tables.plugins,
        prefixes=("torchvision.",),
        others=("torchvision.<Dataset>",),
        of_torchvision="torchvision.datasets",
        hidden=("transformer", "evaluator", "image_reader"),
        kwargs=dict(kwargs.model_extra or {}),
    )
    for index, transform in enumerate(kwargs.transformer):
        transform_path = (*dataset_path, "kwargs", "transformer", index)
        yield from check_component(
            transform,
            transform_path,
            tables.transforms,
            "KD311",
            "transform",
            tables.plugins,
            prefixes=("torchvision.",),
            others=("torchvision.<name>",),
            of_torchvision="torchvision.transforms.v2",
        )
    loader, sampler = part.dataloader.kwargs, part.batch_sampler.kwargs.sampler
    for component, component_path, table, code, what in (
        (
            kwargs.image_reader,
            (*dataset_path, "kwargs", "image_reader"),
            tables.image_readers,
            "KD313",
            "image reader",
        ),
        (kwargs.evaluator, (*dataset_path, "kwargs", "evaluator"), tables.evaluators, "KD315", "evaluator"),
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
            yield from check_component(component, component_path, table, code, what, tables.plugins)


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
                yield from check_torch_arguments(component, (*path, key, "kwargs"), what)


# jobs


@dataclass(frozen=True, slots=True)
class _Loss:
    spec: LossSpec
    path: SpecPath
    defaults: Mapping[str, Any] = field(default_factory=dict)


def check_jobs(spec: Spec, tables: Tables) -> Iterator[Diagnostic]:
    """All findings about the jobs of `mimic`."""
    assert spec.mimic is not None
    for name, job in spec.mimic.jobs.items():
        yield from _job(spec, job, ("mimic", "jobs", name), tables)


def _job(spec: Spec, job: Job, path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    method: Method | None = None
    name = job.mimic_ins_type
    own = is_own(name)
    try:
        record = lookup(
            tables.mimickers,
            name,
            tables.plugins,
            path=(*path, "mimic_ins_type"),
            code="KD307",
            what="mimic method",
            forgotten="KD309",
        )
        # What a method of one's own takes is known once it is imported (check_own_jobs).
        method = None if own else record
    except SpecError as error:
        yield from error.diagnostics
    if method is not None:
        yield from check_method(job, method, path)
    if job.adapter is not None:
        yield from check_component(
            job.adapter, (*path, "adapter"), tables.adapters, "KD318", "adapter", tables.plugins
        )
    for loss in _losses(job, method, path):
        yield from _loss(spec, job, loss, tables, peers=own or (method is not None and method.peers))
    if not own and (method is None or method.paired):
        yield from _counts(job, path)


def check_method(job: Job, method: Method, path: SpecPath) -> Iterator[Diagnostic]:
    """What `cfgs` of a job holds against what its method takes; of own code also how layers are paired."""
    yield from _names(job, method, path)
    yield from _options(job, method, path)
    if method.own and method.paired:
        yield from _counts(job, path)


def _options(job: Job, method: Method, path: SpecPath) -> Iterator[Diagnostic]:
    """Options of a wrong type, out of their range or none of their choices; and those that are missing.

    One that is given nothing has its default.
    """
    what = f"`{job.mimic_ins_type}`"
    for option in options_of(method.options).values():
        value = job.options.get(option.name)
        if value is None:
            if option.required:
                message = f"{what} needs the option `{option.name}`"
                help = f"add `{option.name}` to `cfgs`" + (f": {option.meaning}" if option.meaning else "")
                yield Diagnostic(code="KD321", message=message, help=help, path=path, on_key=True)
            continue
        for finding in check_type(option.name, value, option.annotation, (*path, "options"), what):
            of_choices = choices_of(option.annotation)
            if option.code is not None and (of_choices or finding.code == "KD328"):
                finding = replace(finding, code=option.code)
            near = suggest(value, of_choices) if of_choices and isinstance(value, str) else None
            yield replace(finding, help=finding.help or near or option.meaning or None)


def _names(job: Job, method: Method, path: SpecPath) -> Iterator[Diagnostic]:
    """Findings for losses and options that the method does not have."""
    options = options_of(method.options)
    known = [*method.losses, *options]
    unknown: list[tuple[str, str]] = [("options", name) for name in job.options if name not in options]
    if not method.extra_losses:
        unknown += [("losses", name) for name in job.losses if name not in method.losses]
    for part, name in unknown:
        if part == "options" and name in method.losses:
            message = f"`{name}` is a loss of `{job.mimic_ins_type}`: a mapping with a `type`"
            form = f"write `{name}: {{type: ..., kwargs: {{...}}}}`"
            yield Diagnostic(code="KD319", message=message, help=form, path=(*path, part, name))
            continue
        what = "loss" if part == "losses" else "option"
        help = suggest(name, known)
        if part == "options" and name in Job.model_fields:
            help = f"`{name}` is a key of the whole job: write it beside `cfgs`"
        elif part == "options" and method.extra_losses and help is None:
            help = "a loss is a mapping with a `type`"
        yield Diagnostic(
            code="KD319",
            message=f"`{job.mimic_ins_type}` has no {what} `{name}`",
            help=help,
            path=(*path, part, name),
            on_key=True,
        )


def _losses(job: Job, method: Method | None, path: SpecPath) -> Iterator[_Loss]:
    """The losses given, and the method's own where none are."""
    own = {} if method is None else method.losses
    for name, loss in job.losses.items():
        default = own.get(name)
        same = default is not None and default.type == loss.type
        yield _Loss(loss, (*path, "losses", name), default.kwargs if same and default is not None else {})
    if method is None or (method.extra_losses and job.losses):
        return
    for name, default in own.items():
        if name not in job.losses:
            yield _Loss(LossSpec(type=default.type, kwargs=dict(default.kwargs)), (*path, "losses", name))


def _loss(spec: Spec, job: Job, loss: _Loss, tables: Tables, *, peers: bool) -> Iterator[Diagnostic]:
    name = loss.spec.type
    if loss.spec.adapter is not None:
        adapter_path = (*loss.path, "adapter")
        yield from check_component(
            loss.spec.adapter, adapter_path, tables.adapters, "KD318", "adapter", tables.plugins
        )
    try:
        record = lookup(
            tables.losses,
            name,
            tables.plugins,
            path=(*loss.path, "type"),
            code="KD306",
            what="loss",
            forgotten="KD309",
            own=lambda name: Loss(name, kind="feature", own=True),
        )
    except SpecError as error:
        for finding in error.diagnostics:
            known = finding.help or is_own(name)
            yield finding if known else replace(finding, help="`kdcli methods` lists them all")
        return
    takes = signature(record)
    if takes is None:
        return
    if record.own:
        yield from _unbound(name, takes, loss.path)
    given = set(loss.defaults)
    if loss.spec.temperature is not None or job.temperature is not None:
        given.add("T")
    kwargs_path = (*loss.path, "kwargs")
    for finding in check_arguments(loss.spec.kwargs, takes, kwargs_path, f"`{name}`", given=given):
        weight = weight_below_0(finding, takes)
        if weight is None:
            yield finding
        elif not loss.spec.allow_negative:
            yield replace(finding, code="KD228", help=negative_help(weight, "beside the `kwargs`"))
    if loss.spec.temperature is not None and "T" in loss.spec.kwargs:
        message = "`T` in `kwargs` and `temperature` are one argument, given twice"
        yield Diagnostic(
            code="KD323", message=message, help="keep one", path=(*loss.path, "temperature"), on_key=True
        )
    if "teacher" in takes.needs and not job.teachers and not peers:
        message = f"`{name}` compares with a teacher, but the job has none"
        help = "name one: `teacher0: {mimic_name: [...], teacher_weight: ...}`"
        yield Diagnostic(code="KD327", message=message, help=help, path=(*loss.path, "type"))
    yield from check_labels_of_loss(spec, loss.spec, record, takes, loss.path)


def _unbound(name: str, takes: Signature, path: SpecPath) -> Iterator[Diagnostic]:
    """KD352 for positional parameters of an own loss that kdcli has nothing for."""
    made = takes.kind == "class"
    for parameters, known in ((takes.positional if made else {}, MADE_FROM), (takes.called, CALLED_WITH)):
        for parameter in parameters.values():
            if parameter.required and parameter.name not in known:
                message = f"`{name}` takes `{parameter.name}` by position, which kdcli has nothing for"
                help = (
                    suggest(parameter.name, known)
                    or f"an option is keyword-only; bound are: {', '.join(known)}"
                )
                yield Diagnostic(code="KD352", message=message, help=help, path=(*path, "type"))


def _counts(job: Job, path: SpecPath) -> Iterator[Diagnostic]:
    """Check that student and teachers name equally many layers: they are paired in order."""
    students = len(job.student.mimic_name)
    for name, teacher in job.teachers.items():
        count = len(teacher.mimic_name)
        if count != students:
            layers = f"{count} layer{'s' if count != 1 else ''}"
            yield Diagnostic(
                code="KD302",
                message=f"`{name}` names {layers}, the student {students}",
                help="layers are paired in order: name equally many in both",
                path=(*path, "teachers", name, "mimic_name"),
                on_key=True,
            )


# own losses and mimic methods


def check_own_jobs(
    spec: Spec, loss_of: Callable[[str], Loss], method_of: Callable[[str], Method]
) -> Iterator[Diagnostic]:
    """Findings about own losses and mimic methods, once they are imported.

    loss_of, method_of: the records. KD350 where a record is wrong, KD319 and what `cfgs` may hold otherwise, and
    KD351, a warning, where there is no record and one is derived.
    """
    if spec.mimic is None or not spec.distils:
        return
    checked: set[str] = set()
    for name, job in spec.mimic.jobs.items():
        path: SpecPath = ("mimic", "jobs", name)
        yield from _own_method(job, path, method_of)
        for key, loss in job.losses.items():
            if is_own(loss.type) and loss.type not in checked:
                checked.add(loss.type)
                yield from _own_loss(loss.type, (*path, "losses", key, "type"), loss_of)


def _own_method(job: Job, path: SpecPath, method_of: Callable[[str], Method]) -> Iterator[Diagnostic]:
    if not is_own(job.mimic_ins_type):
        return
    method_path = (*path, "mimic_ins_type")
    made = Target(job.mimic_ins_type).load()
    if not hasattr(made, "losses_of"):
        message = f"`{job.mimic_ins_type}` is no subclass of `Mimicker` (kdcli.distill.mimickers.mimicker)"
        yield Diagnostic(code="KD350", message=message, path=method_path)
        return
    try:
        record = method_of(job.mimic_ins_type)
    except SpecError as error:
        yield from (_at(finding, method_path) for finding in error.diagnostics)
        return
    yield from check_method(job, record, path)
    if not record.losses and not record.extra_losses and record.options is NoOptions:
        message = (
            f"`{job.mimic_ins_type}` has no `kdcli_record`: it is taken as a method without losses of its own"
        )
        help = "give the class `kdcli_record = Method(losses=..., options=...)` (kdcli.spec.tables)"
        yield Diagnostic(code="KD351", severity="warning", message=message, help=help, path=method_path)


def _own_loss(name: str, path: SpecPath, loss_of: Callable[[str], Loss]) -> Iterator[Diagnostic]:
    made = Target(name).load()
    if not callable(made):
        message = f"`{name}` is a `{type(made).__name__}`, not a loss function or class"
        yield Diagnostic(code="KD350", message=message, path=path)
        return
    if isinstance(made, type) and not any(
        base.__module__ == "torch.nn.modules.module" for base in made.__mro__
    ):
        message = f"the class `{name}` is no `torch.nn.Module`"
        help = "derive it from `torch.nn.Module`, with `forward` in place of `__call__`, or write a function"
        yield Diagnostic(code="KD350", message=message, help=help, path=path)
        return
    try:
        record = loss_of(name)
    except SpecError as error:
        yield from (_at(finding, path) for finding in error.diagnostics)
        return
    if getattr(made, "kdcli_record", None) is None:
        over = "lists of features" if record.whole_list else "features of any layout"
        what = "over the logits" if record.kind == "logit" else f"over {over}"
        if record.kind == "teacher-free":
            what = "without a teacher"
        tempered = ", whose `T` is a temperature" if record.softened else ""
        message = f"`{name}` has no `kdcli_record`: it is taken as a {record.kind} loss {what}{tempered}"
        module, _, attribute = name.partition(":")
        help = (
            f"to say otherwise, write `{attribute}.kdcli_record = {{'kind': ..., 'takes': ...}}` in {module}"
        )
        yield Diagnostic(code="KD351", severity="warning", message=message, help=help, path=path)


def _at(finding: Diagnostic, path: SpecPath) -> Diagnostic:
    return Diagnostic(code=finding.code, message=finding.message, help=finding.help, path=path)
