"""The build stage of `validate`: the run rehearsed on fake tensors, all errors reported at once.

Networks are made for real and turned into shapes; then the code that builds and trains a run is used as it is. Parts
that do not depend on each other are all looked at before anything is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcli.check.data_files import DataSeen, data_facts
from kdcli.check.losses import about_size, check_losses, refuses_one_sample, sides_text
from kdcli.check.on_cuda import may_need_cuda, on_cuda
from kdcli.check.training import (
    check_batch,
    check_data,
    check_idle_losses,
    check_lengths,
    check_probe,
    check_sizes,
    check_stages,
    check_warm_ups,
    check_weight_files,
    check_weight_names,
    one_sample_batches,
    steps_per_epoch_of,
    unknown_size,
)
from kdcli.data.check import Look
from kdcli.data.facts import padded_size
from kdcli.distill.dry_run import rehearse
from kdcli.distill.mimickers import method_of
from kdcli.distill.registered import unregistered
from kdcli.distill.taps import Taps, View
from kdcli.distill.teacher import PixelChange, Teacher
from kdcli.errors import Diagnostic, Findings, SpecError
from kdcli.losses import loss_of
from kdcli.models.fetching import Shown, unseen
from kdcli.models.network import Network, build_network, rehearsed, shapes_only, tells_shapes
from kdcli.models.torch_modes import (
    NOT_FAKE,
    Arrays,
    FlopCount,
    Unfilled,
    every_layer_runs,
    fake_mode,
    flops_of,
    to_fake,
)
from kdcli.parallel.devices import check_threads
from kdcli.parallel.settings import written_precision
from kdcli.records import NetworkFacts, Plan
from kdcli.spec.check.resolve import check_own_jobs
from kdcli.spec.networks import network_path
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.places import HERE, Places
from kdcli.spec.schema import Job, ModuleSpec
from kdcli.tasks.task import Task
from kdcli.training.build import (
    channels_of,
    origin_of,
    pixel_change,
    run_name,
    run_root,
    sample_of,
)
from kdcli.training.caches import cache_findings
from kdcli.training.join_jobs import (
    JoinedJobs,
    first_samples,
    jobs_of,
    join_views,
    labels_of,
    made_up_labels,
    requirements_of,
    show_student,
    show_teacher,
    student_taps,
    teacher_network,
    teacher_settings,
    teacher_taps,
    weight_path,
    with_jobs,
)
from kdcli.training.run import StagePlan
from kdcli.training.sides import Sides


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """plugins: packages that may be imported. places: where files are looked up. look: how far into data and
    weights. progress: hears how far the look at files is; shown: draws how far a download is. plan: whether to work
    out what would run, with its cost; count: else to count FLOPs alone. processes: how many will train. on_cuda:
    whether the user's code is rehearsed for a GPU too, which this machine need not have.
    """

    plugins: tuple[str, ...] = ()
    places: Places = HERE
    on_cuda: bool = False
    look: Look = "nothing"
    progress: Callable[[int, int], None] | None = None
    shown: Shown = unseen
    plan: bool = True
    count: bool = False
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Checked:
    """Findings with their positions, and the plan of the run; no plan where there are errors.

    flops: of each network by its name, of one image of flops_size (height, width), where they were counted.
    """

    findings: tuple[Diagnostic, ...]
    plan: Plan | None
    flops: Mapping[str, int] = field(default_factory=dict)
    flops_size: tuple[int, int] | None = None


def check(parsed: ParsedSpec, options: CheckOptions, sides: Sides | None = None) -> Checked:
    """Rehearse the run of a spec whose names have been checked: `validate` and `train` both call it.

    On fake tensors; where the code of a network or a loss needs values, on real ones. sides: of a caller that
    goes on with the data.
    """
    try:
        sides = sides or Sides(parsed.spec, options.places, plugins=options.plugins)
    except SpecError as error:
        return Checked(tuple(map(parsed.locate, error.diagnostics)), None)
    own = tuple(map(parsed.locate, check_own_jobs(parsed.spec, loss_of, method_of)))
    if any(finding.severity == "error" for finding in own):
        return Checked(own, None)
    mode = None if sides.task.rehearses == "real" else fake_mode()
    data = data_facts(parsed.spec, sides, look=options.look, progress=options.progress)
    rehearsal = _Rehearsal(parsed, options, sides.task, data, mode)
    with torch.random.fork_rng(devices=[]):
        try:
            plan = rehearsal.run()
        except NOT_FAKE:
            rehearsal = _Rehearsal(parsed, options, sides.task, data, None)
            plan = rehearsal.run()
    found = (*own, *(parsed.locate(finding) for finding in rehearsal.findings.found))
    if options.on_cuda and may_need_cuda(parsed.spec) and all(d.severity != "error" for d in found):
        again = on_cuda(lambda mode: _Rehearsal(parsed, options, sides.task, data, mode))
        found += tuple(map(parsed.locate, again))
    if any(d.severity == "error" for d in found):
        return Checked(found, None)
    counted = {"student" if name == "net" else name: number for name, number in rehearsal.flops.items()}
    return Checked(found, plan, counted, rehearsal.counted_at)


class _Rehearsal:
    """One rehearsal of a spec; `findings` grow from part to part.

    mode: None works on real tensors.
    """

    def __init__(
        self,
        parsed: ParsedSpec,
        options: CheckOptions,
        task: Task,
        data: DataSeen,
        mode: FakeTensorMode | None,
    ) -> None:
        self.parsed, self.spec, self.options, self.mode = parsed, parsed.spec, options, mode
        self.task = task
        self.findings = Findings()
        self.flops: dict[str, int] = {}
        self.counted_at: tuple[int, int] | None = None
        self.data = data
        # What needs values runs on the task's tiny images; the spec's own size follows in `at_own_size`.
        self.facts = replace(data.train, shape=None) if task.own_size else data.train
        self.lists: dict[str, tuple[ModuleSpec, ...]] = {"net": task.modules(self.spec)}
        used = {name for job in jobs_of(self.spec).values() for name in job.teachers}
        self.lists |= {name: modules for name, modules in self.spec.teachers.items() if name in used}

    def run(self) -> Plan | None:
        """Run all parts in turn, each as far as the ones before allow."""
        check_data(self.spec, self.findings)
        with self.findings.part():
            self.findings.found += self.options.places.findings(self.spec)
        nets = self.networks()
        self.findings.found += self.data.findings
        samples = self.facts.num_samples
        with self.mode or nullcontext(), Arrays(), ExitStack() as stack:
            if self.options.look != "nothing":
                fetch = self.options.look == "start"
                places, shown = self.options.places, self.options.shown
                check_weight_files(self.spec, nets, places, self.findings, fetch_them=fetch, shown=shown)
            else:
                check_weight_names(self.spec, self.options.places, self.findings)
            per_epoch = steps_per_epoch_of(self.spec, samples, self.data.batches)
            stages, lr = check_stages(self.spec, nets.get("net"), per_epoch, self.findings)
            for findings_of in (check_lengths, check_warm_ups, check_idle_losses):
                self.findings.found += findings_of(self.spec, stages, per_epoch)
            self.findings.found += check_batch(self.spec, samples)
            with self.findings.part():
                check_threads(self.spec.runtime)
            epochs = sum(stage.steps for stage in stages) / per_epoch if per_epoch else None
            self.findings.found += cache_findings(self.spec, self.facts, epochs)
            if len(nets) < len(self.lists):
                return None
            batch = sample_of(self.task, self.spec, self.facts, channels_of(nets["net"]))
            wired = self.join(nets, batch, stack)
            if wired is None:
                own, size = self.task.own_size, batch["image"].shape[-2:]
                self.findings.found = [about_size(one, *size, tiny=own) for one in self.findings.found]
                return None
            joined, teachers = wired
            check_probe(self.spec, nets["net"], teachers, batch, self.findings)
            task_loss = any(s.active.task_loss for s in stages) or not stages
            wrong = check_losses(joined, teachers, batch, self.spec.net, task_loss=task_loss)
            self.findings.found += wrong or self.one_sample(joined, teachers, batch, task_loss)
            plan = None
            if self.options.plan:
                plan = self.plan(nets, joined, teachers, batch, stages, per_epoch, lr)
            elif self.options.count and not wrong:
                self.count(nets["net"], batch)
        return self.at_own_size(nets, plan) if self.task.own_size and not wrong else plan

    def at_own_size(self, nets: Mapping[str, Network], plan: Plan | None) -> Plan | None:
        """Run the networks that have run on tiny images at the spec's own size too, as far as shapes tell.

        Returns the plan with that size's shapes and FLOPs. The networks are fake from here on.
        """
        size, tiny = padded_size(self.spec.dataset.train), None if plan is None else plan.flops_size
        if size is None or not all(map(tells_shapes, nets.values())):
            why = (
                "the spec does not resize its images"
                if size is None
                else "a whole detector of torchvision can't run on fake tensors"
            )
            checked = f"checked at {sides_text(tiny)}{self.on_few(nets)}: {why}"
            return None if plan is None else replace(plan, checked=checked)
        self.mode, channels = fake_mode(), channels_of(nets["net"])
        self.facts = replace(self.facts, shape=(channels, *size))
        for net in nets.values():
            to_fake(net, self.mode)
        with self.mode, shapes_only(*nets.values()), ExitStack() as stack:
            batch = sample_of(self.task, self.spec, self.facts, channels)
            wired = self.join(nets, batch, stack)
            if wired is None:
                return None
            joined, teachers = wired
            with suppress(*NOT_FAKE):
                self.findings.found += check_losses(joined, teachers, batch, self.spec.net, task_loss=False)
            if plan is None and not self.options.count:
                return None
            self.flops["net"] = flops_of(nets["net"], batch)
            self.counted_at = size
            if plan is None:
                return None
            left_out = sorted({name for net in nets.values() for name in net.left_out or ()})
        shapes = {(pair.term, pair.student_layer, pair.teacher_layer): pair for pair in joined.pairs}
        return replace(
            plan,
            networks=tuple(
                replace(one, flops=self.flops["net" if one.name == "student" else one.name])
                for one in plan.networks
            ),
            pairs=tuple(
                shapes.get((pair.term, pair.student_layer, pair.teacher_layer), pair) for pair in plan.pairs
            ),
            flops_size=size,
            checked=f"checked at {sides_text(size)}: the largest images that the transforms give, padded"
            + (
                f"; what computes with boxes at {sides_text(tiny)}{self.on_few(nets)}, and not in the FLOPs:"
                f" {', '.join(left_out)}"
                if left_out
                else ""
            ),
        )

    def on_few(self, nets: Mapping[str, Network]) -> str:
        """What costly modules took of their inputs, in words that follow a size."""
        few = {getattr(module, "takes_few", "") for net in nets.values() for module in net.children()} - {""}
        return "".join(f", {words}" for words in sorted(few))

    def one_sample(
        self, joined: JoinedJobs, teachers: Mapping[str, Teacher], batch: Mapping[str, Any], task_loss: bool
    ) -> list[Diagnostic]:
        """KD480 where an epoch has a batch of one sample, which the student or a loss can't be trained on.

        Not asked where several processes share each batch out: a step that fails there says the same.
        """
        size, count = one_sample_batches(self.spec, self.facts.num_samples)
        if not count or self.options.processes > 1:
            return []
        reason = refuses_one_sample(joined, teachers, first_samples(batch, 1), task_loss=task_loss)
        if reason is None:
            return []
        which = "each batch" if size == 1 else "the last batch of an epoch"
        what = f"{self.facts.num_samples:,} samples, {size} a batch"
        message = f"{which} holds a single sample ({what}), on which no step can be taken: {reason}"
        leave_out = "" if size == 1 else ", or leave that batch out: `drop_last: true` beside it"
        help = f"choose another `batch_size`{leave_out}"
        path = ("dataset", "train", "batch_sampler", "kwargs", "batch_size")
        return [Diagnostic(code="KD480", message=message, help=help, path=path)]

    def networks(self) -> dict[str, Network]:
        """Build every network that can be built, on fake tensors."""
        nets = {}
        for name, modules in self.lists.items():
            with self.findings.part():
                torch.manual_seed(0)
                with nullcontext() if self.mode is None else Unfilled():
                    runtime, plugins = self.spec.runtime, self.options.plugins
                    net = rehearsed(
                        build_network(modules, path=("net",), plugins=plugins, aligned=runtime.aligned)
                        if name == "net"
                        else teacher_network(self.spec, name, plugins)
                    )
                if self.mode is not None:
                    to_fake(net, self.mode)
                nets[name] = net
        return nets

    def join(
        self, nets: Mapping[str, Network], batch: Mapping[str, Any], stack: ExitStack
    ) -> tuple[JoinedJobs, dict[str, Teacher]] | None:
        """Run every network once, then join them by the jobs; None where something was wrong."""
        before = len(self.findings.found)
        student = nets["net"]
        views: dict[str, View] = {}
        teachers: dict[str, Teacher] = {}
        for name, net in nets.items():
            if name == "net":
                continue
            with self.findings.part():
                teacher = self.teacher(name, teacher_taps(self.spec, {name: net}, self.findings)[name])
                pixels = teacher.pixels_of(batch)
                with every_layer_runs(), FlopCount() as counter:
                    views[name] = rehearse(
                        lambda teacher=teacher: show_teacher(teacher, batch, stack),  # type: ignore[misc]
                        net,
                        pixels,
                        self.lists[name],
                        network_path(name),
                    )
                self.flops[name] = int(counter.total) // len(batch["image"])
                teachers[name] = teacher
        taps: Taps | None = None
        view = View({})
        with self.findings.part():
            own = taps = student_taps(self.spec, student, self.findings)
            view = rehearse(
                lambda: (
                    View({}, student(batch))
                    if own is None
                    else show_student(own, batch, stack, gradients=True)
                ),
                student,
                batch,
                self.lists["net"],
                network_path("net"),
            )
        self.findings.found += unregistered(student, [view.features, view.outputs], ("net",))
        if len(self.findings.found) > before:
            return None
        self.check_classes(view)
        with self.findings.part():
            facts = self.facts
            joined = join_views(
                with_jobs(self.spec, self.reached(view, views)),
                student,
                taps,
                teachers,
                view,
                views,
                batch,
                facts,
                made_up_labels(facts),
            )
            if self.mode is not None:
                to_fake(joined.trainee, self.mode)
            return joined, teachers
        return None

    def reached(self, student: View, teachers: Mapping[str, View]) -> dict[str, Job]:
        """The jobs whose layers and outputs these views show; all of them where the networks ran whole."""
        found = {}
        for name, job in jobs_of(self.spec).items():
            needs = requirements_of(job)
            asked = [(student, job.student.mimic_name, needs.student_outputs)]
            asked += [(teachers[t], own.mimic_name, needs.teacher_outputs) for t, own in job.teachers.items()]
            if (
                self.facts.shape is None
                or not self.task.own_size
                or all(
                    view.features.keys() >= set(taps) and view.outputs.keys() >= outputs
                    for view, taps, outputs in asked
                )
            ):
                found[name] = job
        return found

    def teacher(self, name: str, taps: Taps) -> Teacher:
        """A frozen teacher with its own pixels, in full precision."""
        settings = teacher_settings(self.spec, name)
        return Teacher(
            name,
            taps,
            batch_statistics=settings.teacher_bn_mode == "train",
            pixels=self.pixels(name, taps.net),
            labels=labels_of(
                self.task,
                self.spec,
                name,
                settings,
                self.facts,
                self.options.places,
                files=self.options.look != "nothing",
            ),
        )

    def pixels(self, name: str, net: torch.nn.Module) -> PixelChange | None:
        """A teacher's own pixels; KD582 where what its weights state of them can't be done."""
        change = pixel_change(name, self.spec, self.facts, self.options.places, net)
        if change is not None and change.notice:
            path = weight_path(self.spec, name)
            message = f"{name}: {change.notice}"
            help = "add `normalize` to the transformer of dataset.train: the teacher knows no other pixels"
            found = Diagnostic(code="KD582", severity="warning", message=message, help=help, path=path)
            if found not in self.findings.found:
                self.findings.found.append(found)
        return change

    def check_classes(self, view: View) -> None:
        """Compare the student's outputs with the data; an unknown number of classes is taken from the logits."""
        self.findings.found += self.task.fits(self.spec, view.outputs, self.facts, self.data.test)
        logits = view.outputs.get("logits")
        known = self.facts.num_classes is not None or self.facts.labels == "none"
        if not known and isinstance(logits, Tensor) and logits.dim() == 2:
            self.facts = replace(self.facts, num_classes=logits.shape[1])

    def count(self, student: Network, batch: Mapping[str, Any]) -> None:
        """Count the student's FLOPs on one image of the batch."""
        with self.findings.part():
            student.eval()
            self.flops["net"] = rehearse(
                lambda: flops_of(student, batch), student, batch, self.lists["net"], network_path("net")
            )
            self.counted_at = (int(batch["image"].shape[-2]), int(batch["image"].shape[-1]))

    def plan(
        self,
        nets: Mapping[str, Network],
        joined: JoinedJobs,
        teachers: Mapping[str, Teacher],
        batch: Mapping[str, Any],
        stages: tuple[StagePlan, ...],
        per_epoch: int | None,
        lr: float,
    ) -> Plan | None:
        """The plan of a run on one process."""
        networks = []
        self.count(nets["net"], batch)
        for name, net in nets.items():
            networks.append(
                NetworkFacts(
                    name="student" if name == "net" else name,
                    parameters=sum(p.numel() for p in net.parameters()),
                    flops=self.flops.get(name),
                    runs_until=teachers[name].taps.stopped_at if name in teachers else None,
                    **origin_of(self.spec, name, self.options.places, teachers.get(name)),
                )
            )
        self.findings.found += check_sizes(networks)
        if self.facts.shape is None and not self.task.own_size:
            self.findings.found.append(unknown_size(*batch["image"].shape[-2:]))
        runtime, trainer = self.spec.runtime, self.spec.trainer
        in_steps = trainer.max_iter is not None or (stages and self.spec.mimic and self.spec.mimic.stages)
        total = sum(stage.steps for stage in stages)
        return Plan(
            name=run_name(self.parsed),
            run_dir=run_root(self.parsed),
            device=runtime.device,
            processes=1,
            precision=written_precision(runtime),
            networks=tuple(networks),
            pairs=joined.pairs,
            flops_size=self.counted_at,
            samples=self.facts.num_samples,
            labelled=self.facts.labels != "none",
            batch_size=self.spec.dataset.train.batch_sampler.kwargs.batch_size,
            steps_per_epoch=per_epoch,
            total_steps=total if per_epoch is not None or in_steps else None,
            effective_lr=lr,
        )
