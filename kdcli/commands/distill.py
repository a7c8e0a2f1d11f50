"""`kdcli distill`, `kdcli init --from`: a spec from a teacher, a student and a folder of images, and its run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.commands.given_networks import EXAMPLE, SPECS, GivenNetwork, check_fit, given_network, with_facts
from kdcli.commands.options import EvalOptions, TrainOptions
from kdcli.commands.recipe_specs import Request, spec_text
from kdcli.commands.recipes import TeacherKind, recipe_for, recipe_lines
from kdcli.commands.samples import SCHEMA
from kdcli.disk import entries, exists, is_file, is_folder, make_folder, real_path, write_whole
from kdcli.errors import Interrupted, KdError, RunError, UsageError
from kdcli.failures import doing
from kdcli.waiting import say

if TYPE_CHECKING:
    from kdcli.commands.options import DistillOptions, InitOptions


def distill(options: DistillOptions) -> None:
    """Write a spec for the networks and the images, train it, measure the student, and say what there is then."""
    from kdcli.commands.report import evaluate
    from kdcli.commands.train import train

    if options.teacher is None:
        raise _no_weights(None, options)
    request = write_spec(options)
    training = TrainOptions(
        spec=str(request.spec),
        changes=options.changes,
        gpus=options.gpus,
        device=options.device,
        nproc=options.nproc,
        plugins=options.plugins,
        offline=options.offline,
        quiet=options.quiet,
        overwrite=options.overwrite,
        traceback=options.traceback,
    )
    try:
        train(training)
    except Interrupted:
        raise
    except KdError:
        say(f"the spec is {request.spec}; once that is mended: {training.again().removesuffix(' --resume')}")
        raise
    evaluate(EvalOptions(spec=str(_root(request, options)), device=options.device, plugins=options.plugins))
    _tell_what_there_is(request, options)


def init_from(options: InitOptions) -> None:
    """`kdcli init --from`: write the spec that `kdcli distill` would train, and print where it is."""
    from kdcli.report.console import write

    request = write_spec(options)
    said = "".join(f" {word}" for package in options.plugins for word in ("--plugin", package))
    write(
        f"{request.spec}\nnext: kdcli validate --files {request.spec}{said} && kdcli train {request.spec}{said}\n"
    )


def write_spec(options: DistillOptions | InitOptions) -> Request:
    """Read folder and weights, choose a recipe, say which and why, and write its spec.

    Raises UsageError for words that name no network or folder and for a place that isn't free, RunError KD861 to KD866
    and what reading the weights raises.
    """
    from kdcli.data.folders import look
    from kdcli.reference.schema_json import schema_text

    for name in ("student", "data"):
        if getattr(options, name) is None:
            raise UsageError.of(
                f"`--{name}` is missing", f"kdcli distill --teacher {EXAMPLE} --student NETWORK --data DIR"
            )
    assert options.student is not None and options.data is not None
    student = given_network(options.student, "--student", options.plugins)
    teacher = None
    if options.teacher is not None:
        teacher = given_network(options.teacher, "--teacher", options.plugins)
        if teacher.weights is None:
            raise _no_weights(teacher, options)
        _check_unlike(teacher, student)
    out = options.out or Path(
        f"distilled_{_name_of(options.data)}" if teacher else f"teacher_{_name_of(options.data)}"
    )
    _check_free(out, overwrite=options.overwrite)
    data = look(options.data, labels=options.labels)
    if getattr(options, "offline", False):
        from kdcli.models.fetching import go_offline

        go_offline()
    with doing("reading what the teacher's weights state"):
        if teacher is not None:
            teacher = with_facts(teacher, options.plugins)
            check_fit(teacher, options.plugins)
    request = Request(
        teacher=teacher, student=student, data=data, folder=options.data, out=out, plugins=options.plugins
    )
    kind: TeacherKind = "none" if teacher is None else teacher.kind
    recipe = recipe_for(data.labels, kind, data.images, data.sides[1])
    say(f"{options.data}: {data.text}")
    for line in (*data.notes, *recipe_lines(recipe)):
        say(line)
    text = spec_text(request, recipe, options)
    make_folder(out)
    write_whole(out / SCHEMA, schema_text())
    write_whole(request.spec, text)
    say(f"spec: {request.spec}")
    return request


def _name_of(folder: Path) -> str:
    return re.sub(r"[^\w.-]+", "_", real_path(folder).name) or "images"


def _no_weights(teacher: GivenNetwork | None, options: DistillOptions | InitOptions) -> RunError:
    """What to do where there is nothing that the teacher has learnt."""
    name = "torchvision.resnet50" if teacher is None else teacher.title
    library, _, _ = name.partition(".")
    weights = f"{library}:DEFAULT@{name}" if library in ("timm", "torchvision") else "WEIGHTS@" + name
    out = f"teacher_{_name_of(options.data)}" if options.data is not None else "teacher"
    make = shlex.join(
        ["kdcli", "init", "--from", "--student", weights, "--data", str(options.data or "images")]
    )
    how = (
        f"or make a teacher, published weights fine-tuned on these images: `{make}`, then `kdcli train"
        f" {out}/teacher.yaml`, then `kdcli distill --teacher {out}/run ...`"
    )
    if teacher is not None and teacher.words.endswith(SPECS):
        run = f"runs/{Path(teacher.words).stem}"
        how = f"or train it, `kdcli train {teacher.words}`, and name its run: `--teacher {run}`"
    elif teacher is not None and teacher.finds_boxes:
        how = "or train it with a spec of its own, runner `base`, and name its run folder"
    return RunError.of(
        "KD864",
        "there is no teacher: `--teacher` is missing"
        if teacher is None
        else f"the teacher `{teacher.words}` has no weights",
        f"name a file of them, `--teacher {EXAMPLE}`; {how}",
    )


def _check_unlike(teacher: GivenNetwork, student: GivenNetwork) -> None:
    """Raise UsageError where teacher and student are one network with one file."""
    same = [(one.type, one.kwargs) for one in teacher.modules] == [
        (one.type, one.kwargs) for one in student.modules
    ]
    if same and (student.weights == teacher.weights or student.words == teacher.words):
        raise UsageError.of(
            f"the student `{student.words}` is the teacher itself",
            "name a smaller network; a student like the teacher, from random weights, is named without weights",
        )
    if same:
        say(
            f"the student is a network like the teacher, {student.title}: nothing becomes smaller (born again)"
        )


def _check_free(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError where the folder holds something already."""
    if not exists(out):
        return
    if not is_folder(out):
        raise UsageError.of(f"{out} is a file", "name a folder that is new or empty: `--out DIR`")
    if not entries(out):
        return
    specs = [out / name for name in ("distill.yaml", "teacher.yaml") if is_file(out / name)]
    if not specs:
        raise UsageError.of(f"{out} is not empty", "name a folder that is new or empty: `--out DIR`")
    if overwrite:
        return
    on = f"go on with it: `kdcli train {specs[0]} --resume`; " if is_folder(out / "run") else ""
    raise UsageError.of(
        f"{specs[0]} is there already",
        f"{on}start over with `--overwrite`, or name another folder: `--out DIR`",
    )


# The end


def _root(request: Request, options: DistillOptions) -> Path:
    """The folder of the run, which a change on the command line may have moved."""
    from kdcli.spec.parse import read
    from kdcli.training.build import run_root

    return run_root(read(request.spec, options.changes))


def _tell_what_there_is(request: Request, options: DistillOptions) -> None:
    """Print the files of the run, and the commands that go on from here."""
    from kdcli.report.console import write

    root = _root(request, options)
    write("\n" + "".join(f"{line}\n" for line in _ending(request, root, options)), sys.stderr)


def _ending(request: Request, root: Path, options: DistillOptions) -> Iterator[str]:
    words = [*options.changes, *(word for package in options.plugins for word in ("--plugin", package))]
    best = root / "student_best.safetensors"
    student = best if is_file(best) else root / "student.safetensors"
    own = f" {shlex.join(words)}" if words else ""
    plugins = "".join(f" --plugin {package}" for package in options.plugins)
    things = [
        (student, f"the student, {request.student.title}"),
        (root / "report.html", "the report"),
        (request.spec, "the spec: change it and train again"),
    ]
    alone = request.out / "alone"
    commands = [
        (f"kdcli export {root}{plugins}", "the student as ONNX"),
        (
            f"kdcli train {request.spec}{own} runtime.runner.type=base saver.save_dir={alone}",
            "the student without the teacher",
        ),
        (f"kdcli compare {root} {alone}", "what the teacher was worth"),
    ]
    if request.data.labels == "none" or request.teacher is None or request.teacher.kind == "features":
        commands = commands[:1]
    if request.data.spare is not None:
        spare = f"dataset.test.dataset.kwargs.root={request.data.spare}"
        commands.append((f"kdcli eval {request.spec}{own} {spare}", "measured on the test images"))
    for title, rows in (
        ("what there is now", [(str(a), b) for a, b in things if exists(a)]),
        ("next", commands),
    ):
        yield title
        for first, second in rows:
            yield f"  {second}"
            yield f"      {first}"
