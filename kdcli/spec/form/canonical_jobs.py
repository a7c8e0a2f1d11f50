"""`mimic` as a mapping of jobs, each job's `cfgs` sorted into losses and options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kdcli.errors import Diagnostic, Span, did_you_mean
from kdcli.spec import schema
from kdcli.spec.text.nodes import Entry, Mapping, Node, Scalar, kind


@dataclass(slots=True)
class DiagnosticList:
    """Errors and warnings collected on the way through a text."""

    findings: list[Diagnostic] = field(default_factory=list)

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Add an error."""
        self.findings.append(Diagnostic(code=code, message=message, span=span, help=help))

    def warn(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Add a warning."""
        finding = Diagnostic(code=code, message=message, span=span, help=help, severity="warning")
        self.findings.append(finding)


MIMIC_KEYS = ("mimic_as_jobs", "stages", "task_loss")
# Keys under `cfgs` that United-Perception's own specs carry and that change nothing, there or here, and what to do.
LEFTOVERS = {
    "DeFeat": dict.fromkeys(
        (
            "rcnn_fpn_levels",
            "rcnn_fpn_strides",
            "rcnn_fpn_base_scale",
            "teacher_proposal",
            "head_fg_loss",
            "head_bg_loss",
        ),
        "delete it",
    ),
    "FRS": {"rpn_loss": "its loss of scores is `pred_loss`, now with its defaults"},
}
JOB_KEYS = tuple(k for k in schema.Job.model_fields if k not in ("losses", "options", "teachers"))


def canonical_mimic(mimic: Mapping, top: Entry, found: DiagnosticList) -> Mapping:
    """`mimic` as {jobs, stages, task_loss}; top: its entry in the spec."""
    as_jobs = mimic.find("mimic_as_jobs")
    if as_jobs is not None and not (
        isinstance(as_jobs.value, Scalar) and isinstance(as_jobs.value.value, bool)
    ):
        message = f"`mimic_as_jobs` must be true or false, got {kind(as_jobs.value)}"
        found.error("KD204", message, as_jobs.value.span)
    kept = [e for e in mimic.entries if e.key in ("stages", "task_loss")]
    rest = [e for e in mimic.entries if e.key not in MIMIC_KEYS]
    named = [e for e in rest if e.key.startswith("mimic_job")]
    jobs: list[Entry]
    if _is_true(as_jobs.value if as_jobs else None):
        jobs = [replace(e, value=_job(e.value, found)) for e in named]
        for entry in rest:
            if entry not in named:
                help = did_you_mean(entry.key, (*MIMIC_KEYS, "mimic_job0"))
                if entry.key in JOB_KEYS or entry.key == "cfgs" or entry.key.startswith("teacher"):
                    help = "with `mimic_as_jobs` it belongs into a job (`mimic_job0: ...`)"
                found.error("KD202", f"unknown key `{entry.key}` in `mimic`", entry.key_span, help)
        if not jobs:
            assert as_jobs is not None
            help = "add `mimic_job0: {...}`, or delete `mimic_as_jobs`"
            found.error("KD213", "`mimic_as_jobs` is true, but there is no job", as_jobs.key_span, help)
    else:
        for entry in named:
            help = "add `mimic_as_jobs: true` under `mimic`"
            message = f"`{entry.key}` is a job, but `mimic_as_jobs` is not true"
            found.error("KD213", message, entry.key_span, help)
        one = replace(mimic, entries=tuple(e for e in rest if e not in named))
        jobs = [Entry(key="mimic_job0", key_span=top.key_span, value=_job(one, found))]
        if named and not one.entries:
            jobs = []
    made = Mapping(entries=tuple(jobs), span=mimic.span)
    key_span = as_jobs.key_span if as_jobs else top.key_span
    return replace(mimic, entries=(Entry(key="jobs", key_span=key_span, value=made), *kept))


def _job(job: Node, found: DiagnosticList) -> Node:
    if not isinstance(job, Mapping):
        return job
    entries: list[Entry] = []
    teachers: list[Entry] = []
    for entry in job.entries:
        if entry.key in ("losses", "options"):
            help = "losses and options both stand under `cfgs`"
            found.error("KD202", f"unknown key `{entry.key}` in a job", entry.key_span, help)
        elif entry.key == "cfgs":
            entries += _cfgs(_less_leftovers(entry, job, found), found)
        elif entry.key.startswith("teacher") and entry.key != "teacher_weighting":
            teachers.append(entry)
        elif entry.key == "adapter":
            entries.append(replace(entry, value=_adapter(entry.value)))
        else:
            entries.append(entry)
    if teachers:
        span = teachers[0].key_span
        mapping = Mapping(entries=tuple(teachers), span=span)
        entries.append(Entry(key="teachers", key_span=span, value=mapping))
    return replace(job, entries=tuple(entries))


def _less_leftovers(cfgs: Entry, job: Mapping, found: DiagnosticList) -> Entry:
    named = job.get("mimic_ins_type")
    method = str(named.value) if isinstance(named, Scalar) else ""
    if method not in LEFTOVERS or not isinstance(cfgs.value, Mapping):
        return cfgs
    for key, help in LEFTOVERS[method].items():
        entry = cfgs.value.find(key)
        if entry is not None:
            found.warn("KD614", f"`{key}` has no effect in `{method}`", entry.key_span, help)
    return replace(cfgs, value=cfgs.value.without(*LEFTOVERS[method]))


def _cfgs(cfgs: Entry, found: DiagnosticList) -> list[Entry]:
    if not isinstance(cfgs.value, Mapping):
        message = f"`cfgs` must be a mapping, got {kind(cfgs.value)}"
        found.error("KD204", message, cfgs.value.span)
        return []
    losses: list[Entry] = []
    options: list[Entry] = []
    for entry in cfgs.value.entries:
        if isinstance(entry.value, Mapping) and {"type", "kwargs"} & set(entry.value.keys()):
            value = _loss(entry.value, found)
            losses.append(replace(entry, value=value))
        else:
            options.append(entry)
    span = cfgs.value.span
    return [
        Entry(key=key, key_span=cfgs.key_span, value=Mapping(entries=tuple(found), span=span))
        for key, found in (("losses", losses), ("options", options))
        if found
    ]


def _loss(loss: Mapping, found: DiagnosticList) -> Mapping:
    """A loss with its adapter as a mapping, and its temperature called `T`."""
    adapter = loss.find("adapter")
    if adapter is not None:
        loss = loss.with_entry(replace(adapter, value=_adapter(adapter.value)))
    kwargs = loss.find("kwargs")
    if kwargs is None or not isinstance(kwargs.value, Mapping):
        return loss
    long, short = kwargs.value.find("temperature"), kwargs.value.find("T")
    if long is None:
        return loss
    if short is not None:
        message = "`T` and `temperature` are one argument, given twice"
        found.error("KD323", message, long.key_span, "keep `T`")
        return loss
    entries = tuple(replace(e, key="T") if e is long else e for e in kwargs.value.entries)
    return loss.with_entry(replace(kwargs, value=replace(kwargs.value, entries=entries)))


def _adapter(node: Node) -> Node:
    """`adapter: auto` as a mapping."""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        entry = Entry(key="type", key_span=node.span, value=node)
        return Mapping(entries=(entry,), span=node.span)
    return node


def _is_true(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.value is True
