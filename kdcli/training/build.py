"""From a checked spec to a built run; the only file that knows every package.

Order matters: the student is made first, from the seed alone, so that a baseline and every distilled
run of the same seed start from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcli.data.build import build_loader
from kdcli.data.digest import digest_of
from kdcli.data.facts import DataFacts, with_classes_of
from kdcli.data.loaders import Loader
from kdcli.data.sources import OpenedData
from kdcli.disk import expanded, prove_writable
from kdcli.distill.dry_run import rehearse, restored_state
from kdcli.distill.folding import fold
from kdcli.distill.half_weights import hold_half
from kdcli.distill.mimickers import method_of
from kdcli.distill.taps import Taps
from kdcli.distill.teacher import PixelChange, Teacher, pixels_of
from kdcli.errors import Diagnostic, KdError, RunError, SpecError, SpecPath
from kdcli.losses import loss_of
from kdcli.models.network import Network, build_network
from kdcli.models.weights import weights_hash
from kdcli.parallel.devices import autocast_for, scaler_for, to_device, use_threads
from kdcli.parallel.distributed import Processes
from kdcli.parallel.settings import DeviceFacts, Settings, decide, facts_of, has_convolutions, using
from kdcli.records import NetworkFacts
from kdcli.spec.check.resolve import check_own_jobs
from kdcli.spec.check.rules import views_of
from kdcli.spec.parse import ParsedSpec, seed_suffix
from kdcli.spec.places import Places
from kdcli.spec.schema import Spec
from kdcli.tasks.task import Task
from kdcli.training.caches import cache_findings, sources_of
from kdcli.training.checkpoint import checkpoints
from kdcli.training.claim import claim, was_requeued
from kdcli.training.join_jobs import (
    first_samples,
    jobs_of,
    join_jobs,
    labels_of,
    student_source,
    teacher_network,
    teacher_settings,
    teacher_source,
    teacher_taps,
    weight_sources,
)
from kdcli.training.optim import MovingAverage, average_of
from kdcli.training.resume import UnbuiltRun, find_checkpoint
from kdcli.training.run import Run, RunOptions, plan_stages
from kdcli.training.run_folder import RunFolder, make_ready, open_folder, refuse_foreign, with_own_files
from kdcli.training.sides import Sides, require_same_data, truth_file


def run_name(parsed: ParsedSpec) -> str:
    """The spec's file name without its ending, and `-seed2` where the command line sets the seed to 2.

    A spec from standard input is called `stdin`, one of Python's mappings as it is named there.
    """
    source = parsed.source
    name = "stdin" if source == "-" else source[1:-1] if source.startswith("<") else Path(source).stem
    return name + seed_suffix(parsed.tree)


def run_root(parsed: ParsedSpec) -> Path:
    """`saver.save_dir`, else runs/<run name>."""
    named = parsed.spec.saver.save_dir
    if named is None:
        return Path("runs") / run_name(parsed)
    with naming(parsed, "save_dir"):
        return expanded(named)


@contextmanager
def claimed_folder(
    parsed: ParsedSpec,
    options: RunOptions,
    processes: Processes,
    say: Callable[[str], object] | None = None,
) -> Iterator[RunFolder]:
    """The run folder, held by rank 0 for a `with` block; nothing but its lock is written yet.

    say: takes a sentence where an earlier process of this job has to be waited for. Raises KdError on every
    process, as `refuse_foreign` and `claim`.
    """
    root, results = run_root(parsed), parsed.spec.saver.results_dir
    if options.profile is not None:
        root = root / "profile"  # a run that lies there is none of its business
    own = None
    failure: KdError | None = None
    with ExitStack() as stack:
        if processes.speaks:
            try:
                with naming(parsed, "save_dir"):
                    refuse_foreign(root)
                    restarted = options.restarted or was_requeued()
                    own = stack.enter_context(claim(root, restarted=restarted, say=say))
            except KdError as error:
                failure = error
        diagnostics = processes.broadcast(None if failure is None else failure.diagnostics)
        if diagnostics is not None:
            raise failure or RunError(diagnostics)
        with naming(parsed, "results_dir"):
            figures = None if results is None else expanded(results) / f"{run_name(parsed)}.json"
        yield RunFolder(root, figures, own)


@contextmanager
def built(
    parsed: ParsedSpec,
    options: RunOptions,
    processes: Processes,
    sides: Sides | None = None,
    folder: RunFolder | None = None,
) -> Iterator[Run]:
    """Build the run of a spec for a `with` block; its taps and loaders are closed at the end of the block.

    sides, folder: of a caller that has opened the data, and claimed the run folder.
    """
    with ExitStack() as stack:
        folder = folder or stack.enter_context(claimed_folder(parsed, options, processes))
        yield stack.enter_context(_built(parsed, options, processes, sides, folder))


@contextmanager
def _built(
    parsed: ParsedSpec, options: RunOptions, processes: Processes, sides: Sides | None, folder: RunFolder
) -> Iterator[Run]:
    spec = parsed.spec
    clear_folder(folder, parsed, options, processes)
    options = with_own_files(options, spec, folder, processes)
    use_threads(spec.runtime)
    with ExitStack() as stack:
        sides = sides or Sides(spec, options.places, plugins=options.plugins)
        train_loader = build_data(sides.train, spec, processes, as_bytes=True)
        stack.callback(train_loader.close)
        test_loader = build_data(sides.test, spec, processes, as_bytes=True)
        stack.callback(test_loader.close)
        digests = {}
        if options.profile is None:  # a profile saves nothing
            truth = truth_file(spec, options.places)
            digests["train"] = digest_of(sides.train, train_loader)
            digests["test"] = digest_of(sides.test, test_loader, truth)
            require_same_data(processes, digests)
            digests = digests if processes.speaks else {}
        # Before anything is written: a run that is refused leaves the folder as it was.
        found_checkpoint = find_checkpoint(UnbuiltRun(parsed, options, folder, processes, digests))
        if processes.speaks and options.profile is None:
            if folder.results is not None:
                with naming(parsed, "results_dir"):
                    prove_writable(folder.results)
            with naming(parsed, "save_dir"):
                make_ready(folder)
        facts = with_classes_of(train_loader.facts, test_loader.facts)
        known = [*file_notices(spec, options.places)]
        task = sides.task
        known += as_notices(list(check_own_jobs(spec, loss_of, method_of)))
        known += as_notices(task.agree(spec, facts, test_loader.facts, options.places))
        notices = [] if folder.claim is None else [*folder.claim.notices]
        notices += list(dict.fromkeys([*train_loader.notices, *test_loader.notices]))
        probe, found = sides.build_probe(processes.device, folder.root)
        stack.callback(probe.close if probe is not None else bool)
        known += as_notices(found)
        student = build_student(task, spec, options)
        notices += load_pretrained(student, spec, options, folder)
        nets, hashes = build_teachers(spec, options, notices=notices)
        device_facts = facts_of(processes.device)
        settings = settings_for(
            spec,
            device_facts,
            facts,
            (student, *nets.values()),
            bytes_first=train_loader.gives_bytes,
            kept=None if found_checkpoint is None else found_checkpoint.arithmetic,
        )
        stack.enter_context(using(settings))
        notices += settings.notices(device_facts)
        move_to_device(student, settings, processes)
        teachers = {
            name: build_teacher(task, name, taps, spec, facts, processes, options.places, settings)
            for name, taps in teacher_taps(spec, nets).items()
        }
        notices += [teacher.labels.notice for teacher in teachers.values() if teacher.labels.notice]
        known += [t.pixels.notice for t in teachers.values() if t.pixels is not None and t.pixels.notice]
        stages = plan_stages(spec, -(-len(train_loader) // spec.trainer.accumulate_steps))
        batches = len(train_loader) or 1
        known += as_notices(cache_findings(spec, facts, sum(stage.steps for stage in stages) / batches))
        sample = to_device(first_samples(next(train_loader.batches(0))), processes.device)
        outputs = rehearse(lambda: outputs_of(student, sample), student, sample, task.modules(spec), ("net",))
        known += as_notices(task.fits(spec, outputs, facts, test_loader.facts))
        # The proof has given these already.
        notices += known if options.proof is None else []
        before_layouts = found_checkpoint is not None and found_checkpoint.before_layouts
        joined = join_jobs(
            spec,
            student,
            teachers,
            sample,
            facts,
            stack,
            sides.train.labels,
            before_layouts=before_layouts,
        )
        joined.trainee.to(processes.device)
        if spec.runtime.fold_bn:
            notices += [folding_notice(name, fold(teacher, sample)) for name, teacher in teachers.items()]
        notices += rounded_weights(spec, teachers, sample)
        sources, cache_notices = sources_of(
            spec,
            teachers,
            joined.teacher_views,
            len(sample["image"]),
            hashes,
            train_loader,
            processes,
            run_root(parsed) / "cache",
            digests["train"].images if "train" in digests else None,
        )
        notices += cache_notices
        average = average_of(spec)
        yield Run(
            name=run_name(parsed),
            parsed=parsed,
            options=options,
            processes=processes,
            folder=folder,
            task=task,
            facts=facts,
            train_loader=train_loader,
            sides=sides,
            test_loader=test_loader,
            probe=probe,
            joined=joined,
            teachers=teachers,
            sources=sources,
            teacher_hashes=hashes,
            allowed_weak_teachers=frozenset(
                n for n in teachers if teacher_settings(spec, n).allow_weak_teacher
            ),
            stages=stages,
            ema=None if average is None else MovingAverage(joined.deployed, average),
            settings=settings,
            autocast=autocast_for(settings.precision, processes.device),
            scaler=scaler_for(settings.precision, processes.device),
            digests=digests,
            found_checkpoint=found_checkpoint,
            networks=tuple(
                NetworkFacts(
                    name="student" if name == "net" else name,
                    parameters=sum(p.numel() for p in net.parameters()),
                    **origin_of(spec, name, options.places, teachers.get(name)),
                )
                for name, net in [("net", student), *nets.items()]
            ),
            notices=tuple(notices),
        )


def file_notices(spec: Spec, places: Places, *sections: str) -> list[str]:
    """Notices about where the files were found; raises SpecError KD304 (`Places.findings`).

    sections: top-level keys whose files are read, all where none is given.
    """
    findings = [
        one for one in places.findings(spec) if not sections or (one.path and one.path[0] in sections)
    ]
    errors = [one for one in findings if one.severity == "error"]
    if errors:
        raise SpecError(errors)
    return list(dict.fromkeys(f"{one.message}; {one.help}" for one in findings))


def as_notices(findings: list[Diagnostic]) -> list[str]:
    """Warnings as notices of the run; raises SpecError with all findings where one of them is an error."""
    if any(finding.severity == "error" for finding in findings):
        raise SpecError(findings)
    # Both sides may read one file.
    return list(dict.fromkeys(f"{finding.message}; {finding.help}" for finding in findings))


def settings_for(
    spec: Spec, device: DeviceFacts, facts: DataFacts, nets: Iterable[nn.Module], **more: Any
) -> Settings:
    """How a run of these networks on these data uses its device. more: what else `decide` takes."""
    return decide(
        spec.runtime,
        device,
        one_size=facts.shape is not None and facts.annotations is None,
        convolutions=any(map(has_convolutions, nets)),
        **more,
    )


def move_to_device(net: nn.Module, settings: Settings, processes: Processes) -> None:
    """Move a network to its device, in channels-last memory format where the settings say so."""
    net.to(processes.device)
    if settings.channels_last:
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.dim() == 4:  # a network of videos has others too
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def rounded_weights(spec: Spec, teachers: Mapping[str, Teacher], sample: Mapping[str, Any]) -> list[str]:
    """Hold half precision teachers' weights in their format; notices of those where that can't be."""
    if spec.trainer.parallel == "fsdp":
        return []  # which gathers weights of one format
    return [
        f"{name} keeps its weights in float32: stored as {teacher.precision} they would change its outputs, so they are"
        " converted at each step, which costs a little time"
        for name, teacher in teachers.items()
        if not hold_half(teacher, sample)
    ]


def folding_notice(name: str, count: int) -> str:
    """The notice that `count` BatchNorms of a network were folded into its convolutions."""
    if count:
        return f"{count} BatchNorms of {name} are folded into the convolutions before them"
    return f"no BatchNorm of {name} can be folded into a convolution"


def clear_folder(folder: RunFolder, parsed: ParsedSpec, options: RunOptions, processes: Processes) -> None:
    """Let rank 0 find the run folder free, or clear it; `make_ready` comes once the run may go on."""
    if processes.speaks and options.profile is None:
        resume = bool(options.resume) or parsed.spec.saver.auto_resume
        with naming(parsed, "save_dir"):
            open_folder(folder, overwrite=options.overwrite, resume=resume)
    processes.wait()


@contextmanager
def naming(parsed: ParsedSpec, key: str) -> Iterator[None]:
    """Point at `saver.<key>`, where the spec writes it, in the error about a place that can't be used."""
    path: SpecPath = ("saver", key)
    try:
        yield
    except RunError as error:
        written = parsed.span(path) != parsed.span(("saver",), on_key=True)
        if not written or any(found.code not in ("KD521", "KD740") for found in error.diagnostics):
            raise
        raise SpecError([replace(found, path=path) for found in error.diagnostics]) from error


def outputs_of(net: Network, sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run a network once in eval mode; buffers and random state stay as they were."""
    with restored_state(net), torch.no_grad():
        outputs: Mapping[str, Any] = net.eval()(sample)
        return outputs


def sample_of(task: Task, spec: Spec, facts: DataFacts, channels: int = 3) -> dict[str, Any]:
    """A made-up batch in the shapes of a spec's training data; channels: where the data does not say."""
    modules = [*spec.net, *(module for teacher in spec.teachers.values() for module in teacher)]
    return task.sample(
        spec.dataset.train, facts, channels=channels, modules=modules, aligned=spec.runtime.aligned
    )


def channels_of(net: nn.Module) -> int:
    """How many channels the network's first convolution reads; 3 without one."""
    return next((m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), 3)


def build_data(opened: OpenedData, spec: Spec, processes: Processes, *, as_bytes: bool = False) -> Loader:
    """Build the data loader of one side (train or test) for this process.

    as_bytes: whoever reads it calls `to_device`, so that images may come as bytes and be normalised there.
    """
    on_cuda = processes.device.type == "cuda"
    return build_loader(
        opened,
        seed=spec.runtime.random_seed,
        rank=processes.rank,
        world_size=processes.world_size,
        views=views_of(spec) if opened.train else None,
        on_cuda=on_cuda,
        as_bytes=as_bytes and on_cuda and spec.runtime.uint8_images is not False,
    )


def build_student(task: Task, spec: Spec, options: RunOptions) -> Network:
    """Build the student from the seed alone; leaves the main generator seeded for adapters and methods."""
    torch.manual_seed(spec.runtime.random_seed)
    net = build_network(
        task.modules(spec), path=("net",), plugins=options.plugins, aligned=spec.runtime.aligned
    )
    if spec.runtime.special_bn_init:
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps, module.momentum = 1e-3, 0.03
    return net


def load_pretrained(net: Network, spec: Spec, options: RunOptions, folder: RunFolder) -> list[str]:
    """Load `saver.pretrain_model` into the student, unless a checkpoint will be resumed; returns notices."""
    resume = bool(options.resume) or spec.saver.auto_resume
    resumed = spec.saver.resume_model is not None or (resume and bool(checkpoints(folder.checkpoints)))
    if spec.saver.pretrain_model is None or resumed:
        return []
    source = student_source(spec, options.places)
    return [] if source is None else list(source.load(net, options.shown))


def build_teachers(
    spec: Spec, options: RunOptions, *, load: bool = True, notices: list[str] | None = None
) -> tuple[dict[str, Network], dict[str, str]]:
    """Build every teacher that a job uses, and hash its weights; without `load` the weights are random.

    notices: a list that takes what was left out of the weights.
    """
    nets, hashes = {}, {}
    jobs = jobs_of(spec)
    for name in spec.teachers:
        if not any(name in job.teachers for job in jobs.values()):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.runtime.random_seed)
            net = teacher_network(spec, name, options.plugins)
        source = teacher_source(spec, name, options.places)
        if load and source is not None:
            left_out = source.load(net, options.shown)
            if notices is not None:
                notices += [f"{name}: {notice}" for notice in left_out]
        nets[name] = net
        hashes[name] = weights_hash(net.state_dict())
    return nets, hashes


def build_teacher(
    task: Task,
    name: str,
    taps: Taps,
    spec: Spec,
    facts: DataFacts,
    processes: Processes,
    places: Places,
    settings: Settings,
) -> Teacher:
    """Freeze a teacher on its device, with its own pixels, precision and classes."""
    own = teacher_settings(spec, name)
    move_to_device(taps.net, settings, processes)
    return Teacher(
        name,
        taps,
        batch_statistics=own.teacher_bn_mode == "train",
        pixels=pixel_change(name, spec, facts, places, taps.net),
        precision=settings.teacher_precision,
        autocast=autocast_for(settings.teacher_precision, processes.device),
        labels=labels_of(task, spec, name, own, facts, places),
    )


def pixel_change(
    name: str, spec: Spec, facts: DataFacts, places: Places, net: nn.Module
) -> PixelChange | None:
    """The change from the student's pixels to this teacher's; None where both take the same.

    They are those of the spec's `input`; what it leaves open is as the teacher's published weights state it.
    """
    own, source = teacher_settings(spec, name).input, teacher_source(spec, name, places)
    card = None if source is None else source.card()
    stated = None if card is None else card.pixels
    mean, std = facts.mean, facts.std
    if own is not None and (own.mean or own.std) and (mean is None or std is None):
        job = next(job for job, j in jobs_of(spec).items() if name in j.teachers)
        raise SpecError.at(
            ("mimic", "jobs", job, "teachers", name, "input"),
            "KD436",
            f"{name} expects its own mean and std, but the data is not normalised by a `normalize` transform",
            "add `normalize` to the transformer of dataset.train; of float images in Python: `kdcli.Data(mean=, std=)`",
        )
    if facts.annotations is not None and stated is not None:
        stated = replace(stated, size=None)  # boxes are in the pixels of the data
    return pixels_of(own, stated, mean, std, None if facts.shape is None else facts.shape[1:], net)


def origin_of(spec: Spec, name: str, places: Places, teacher: Teacher | None) -> dict[str, Any]:
    """Of which published weights a network is made and where they lie, and what pixels a teacher takes, in words."""
    sources = weight_sources(spec, places)
    card = sources[name].card() if name in sources else None
    pixels = None if teacher is None or teacher.pixels is None else str(teacher.pixels)
    if card is None:
        return {"weights": None, "input": pixels}
    here = f"in {card.file}" if card.file is not None else f"fetched when it trains, to {card.place}"
    return {"weights": f"{card.name}, {here}", "input": pixels}
