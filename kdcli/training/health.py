"""What can be wrong with the numbers of a run: probabilities in place of logits, NaN and Inf, unreadable samples.

The first is looked for on a real batch before training, the others at each step: a non-finite loss or gradient never
reaches the weights unseen.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdcli.data.batches import BadRecord
from kdcli.data.loaders import allowed, budget_text
from kdcli.disk import write_whole
from kdcli.distill.dry_run import restored_state
from kdcli.distill.mimickers.mimicker import Mimicker
from kdcli.distill.module_search import maker_of
from kdcli.distill.taps import View
from kdcli.distill.teacher import is_logits
from kdcli.distill.terms import TapSide, Term
from kdcli.errors import Diagnostic, RunError, SpecPath
from kdcli.parallel.devices import to_device
from kdcli.parallel.sharding import plain, watched
from kdcli.records import Notice
from kdcli.training.checkpoint import Progress, checkpoints, generator_state
from kdcli.training.join_jobs import first_samples
from kdcli.training.run import Run

SAMPLES = 64
TOLERANCE = 1e-3
SOFTMAX = (nn.Softmax, nn.LogSoftmax)


def doubtful_logits(run: Run) -> Iterator[Notice]:
    """Warn of each tap that gives probabilities to a loss on logits, and of a student that outputs them."""
    if run.task.matching is None:
        return
    batch = to_device(first_samples(next(run.train_loader.batches(0)), SAMPLES), run.processes.device)
    with restored_state(run.trainee), torch.no_grad():
        views = {name: teacher.whole_view(batch) for name, teacher in run.teachers.items()}
        run.trainee.train()  # what a peer shows, it shows in training
        student = run.trainee.view(batch)
    findings: dict[str, Diagnostic] = {}
    for finding in [*_taken(run, batch, student, views), *_classified(run, batch, student)]:
        findings.setdefault(finding.message, finding)
    for finding in findings.values():
        span = run.parsed.locate(finding).span
        place = "" if span is None else f" ({span.source}:{span.line})"
        yield Notice(message=f"{finding.code}: {finding.message}{place}; {finding.help}", level="warning")


def are_probabilities(value: Any) -> bool:
    """Whether every row [K] lies in [0, 1] and sums to 1."""
    if not is_logits(value) or value.shape[1] < 2:
        return False
    rows = value.detach().float()
    inside = bool(((rows >= 0) & (rows <= 1)).all())
    return inside and bool(((rows.sum(1) - 1).abs() <= TOLERANCE).all())


def _taken(
    run: Run, batch: Mapping[str, Any], student: View, teachers: Mapping[str, View]
) -> Iterator[Diagnostic]:
    """The tensors that the losses on logits receive."""
    for job, mimicker in run.trainee.mimickers.items():
        assert isinstance(mimicker, Mimicker)
        for term in mimicker.modules():
            if not isinstance(term, Term):
                continue
            path: SpecPath = ("mimic", "jobs", job)
            pairs = term.pairs if term.record.kind == "logit" else ()
            sides: list[tuple[str | None, View, TapSide, SpecPath]]
            sides = [(None, student, pair.student, (*path, "student")) for pair in pairs]
            sides += [
                (term.teacher, teachers[term.teacher], pair.teacher, (*path, "teachers", term.teacher))
                for pair in pairs
                if term.teacher is not None and pair.teacher is not None
            ]
            for whose, view, side, where in sides:
                value = view.features.get(side.tap)
                if are_probabilities(value):
                    yield _softmax_twice(
                        run, batch, whose, side.tap, value, (*where, "mimic_name", side.number), term
                    )
            yield from _beside(job, term, student, teachers)


def _beside(job: str, term: Term, student: View, teachers: Mapping[str, View]) -> Iterator[Diagnostic]:
    """The logits that a loss reads beside its features."""
    path: SpecPath = ("mimic", "jobs", job)
    sides: list[tuple[str, str, View, SpecPath]] = [
        ("student_logits", "the student", student, (*path, "student"))
    ]
    if term.teacher is not None:
        where = (*path, "teachers", term.teacher)
        sides.append(("teacher_logits", term.teacher, teachers[term.teacher], where))
    for argument, whose, view, where in sides:
        if argument in term.binding.inputs and are_probabilities(view.outputs.get("logits")):
            yield Diagnostic(
                code="KD626",
                severity="warning",
                message=f"{term.loss_type} reads the logits of {whose}, and these are probabilities",
                help="leave the softmax out of the network's forward",
                path=where,
            )


def _softmax_twice(
    run: Run,
    batch: Mapping[str, Any],
    teacher: str | None,
    tap: str,
    value: Any,
    path: SpecPath,
    term: Term,
) -> Diagnostic:
    net, seen = _network(run, teacher, batch)
    with nullcontext() if teacher is None else run.teachers[teacher].autocasting():
        layer = logits_layer(net, seen, tap, value)
    whose = "the student" if teacher is None else teacher
    return Diagnostic(
        code="KD626",
        severity="warning",
        message=f"`{tap}` of {whose} gives probabilities, and {term.loss_type} takes a softmax of them once more",
        help="name the layer before the softmax"
        + (f": `{layer}`" if layer is not None else ", or leave the softmax out of the network's forward"),
        path=path,
    )


def _classified(run: Run, batch: Mapping[str, Any], student: View) -> Iterator[Diagnostic]:
    """The student's output that the task's cross entropy reads."""
    task_loss = any(stage.active.task_loss for stage in run.stages)
    if not task_loss or not are_probabilities(student.outputs.get("logits")):
        return
    yield Diagnostic(
        code="KD626",
        severity="warning",
        message="`logits` of the student are probabilities, and cross entropy takes a softmax of them once more: "
        "it can't fall far",
        help="leave the softmax out of the student's forward",
        path=("net",),
    )


def _network(run: Run, teacher: str | None, batch: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
    if teacher is None:
        return run.student, batch
    return run.teachers[teacher].net, run.teachers[teacher].pixels_of(batch)


def logits_layer(net: nn.Module, batch: Mapping[str, Any], tap: str, value: Tensor) -> str | None:
    """The tap before the softmax: its input, else the last layer of that width with other values.

    value: the probabilities that `tap` gave on the batch.
    """
    softmax = maker_of(net, batch, tap, SOFTMAX)
    if softmax is not None:
        path, bracket, number = softmax.partition("[")
        return f"{path}:in{bracket}{number}"
    found: list[str] = []

    def note(name: str, output: Any) -> None:
        if is_logits(output) and output.shape == value.shape and not are_probabilities(output):
            found.append(name)

    with ExitStack() as stack, torch.no_grad(), restored_state(net):
        for name, module in net.named_modules():
            if name and not list(module.children()):
                hook = module.register_forward_hook(lambda _m, _a, output, name=name: note(name, output))
                stack.callback(hook.remove)
        net.eval()(batch)
    if not found:
        return None
    calls = found.count(found[-1])
    return found[-1] if calls == 1 else f"{found[-1]}[{calls - 1}]"


SHOWN_IDS = 8
NEVER = torch.iinfo(torch.int64).max


class Recent(NamedTuple):
    """What it takes to repeat one step: its number, its samples, the random generators before it."""

    step: int
    epoch: int
    indices: tuple[Tensor, ...]
    generators: dict[str, Any]


class Seen(NamedTuple):
    """What is looked at in one step, on the device.

    parts: the losses. norm: of the gradients, where it is known. found: above 0 where a gradient is not finite.
    """

    parts: list[dict[str, Tensor]]
    norm: Tensor | None
    found: Tensor | None

    @property
    def values(self) -> list[Tensor]:
        """What has to be finite."""
        losses = [value for part in self.parts for value in part.values()]
        return losses if self.norm is None else [*losses, self.norm]


def are_finite(steps: Sequence[Seen]) -> list[bool]:
    """Of each step whether every loss and every gradient is finite; one wait for the device."""
    values = [seen.values for seen in steps]
    found = [seen.found for seen in steps if seen.found is not None]
    good = torch.stack([value for one in values for value in one]).isfinite()
    if found:
        good = torch.cat([good, torch.stack(found) == 0])
    flags = iter(good.tolist())
    finite = [all([next(flags) for _ in one]) for one in values]
    gradients = [seen.found is None or next(flags) for seen in steps]
    return [all(both) for both in zip(finite, gradients, strict=True)]


class FiniteCheck:
    """Check the losses and gradients of every step before the optimizer uses them.

    On the CPU, and where bad steps are to be skipped, each step is looked at before it is taken. On CUDA
    that would make every step wait for the device: the numbers stay there and are looked at together, at log
    points and before each save, and the steps since then are remembered. To skip on the device alone, every optimizer
    would have to leave its state as it is by a flag (torch's fused ones can, the others can't) and EMA and
    buffers too; so skipping waits, as torch's gradient scaler does at each step.
    A gradient scaler looks after gradients itself; then losses alone are looked at.
    """

    def __init__(self, run: Run, *, deferred: bool | None = None) -> None:
        self.run = run
        self.skips = run.spec.trainer.on_nonfinite == "skip"
        on_cuda = run.processes.device.type == "cuda"
        self.deferred = on_cuda and not self.skips if deferred is None else deferred
        self.recent: deque[Recent] = deque(maxlen=run.spec.trainer.log_freq + 1)
        self.notices: list[Notice] = []
        self._unread: dict[int, Seen] = {}
        self._one = torch.ones((), device=run.processes.device)
        self._buffers: list[Tensor] = []
        self._group: Sequence[Mapping[str, Any]] = ()

    def begin(self, progress: Progress, group: Sequence[Mapping[str, Any]]) -> None:
        """Remember the batches and random state of the step that comes."""
        indices = tuple(batch["indices"] for batch in group)
        self._group = () if self.deferred else group
        self.recent.append(Recent(progress.step + 1, progress.epoch, indices, generator_state()))
        if self.skips:
            self._buffers = [buffer.detach().clone() for buffer in self.run.trainee.buffers()]

    def passes(
        self,
        progress: Progress,
        parts: list[dict[str, Tensor]],
        parameters: Sequence[nn.Parameter],
        norm: Tensor | None = None,
    ) -> bool:
        """Whether the step may be taken; raises RunError KD730 where it may not and the run has to stop.

        norm: of the gradients, where clipping has measured it.
        """
        seen = self._seen(parts, parameters, norm)
        if self.deferred:
            self._unread[progress.step + 1] = seen
            return True
        if not self.run.processes.any(not self._is_finite(seen)):
            return True
        trainer = self.run.spec.trainer
        what = self._what(parts, parameters)
        if self.skips and progress.skipped < trainer.nonfinite_budget:
            progress.skipped += 1
            self._put_buffers_back()
            self.notices.append(
                Notice(
                    message=f"step {progress.step + 1} skipped: {what} is not finite "
                    f"({progress.skipped} of at most {trainer.nonfinite_budget})",
                    level="warning",
                )
            )
            return False
        raise self._stop(self.recent[-1], parts, what)

    def read(self) -> None:
        """Raise RunError KD730 where a step since the last call was not finite; every process takes part."""
        if not self.deferred:
            return
        unread, self._unread = self._unread, {}
        finite = are_finite(list(unread.values())) if unread else []
        bad = next((step for step, good in zip(unread, finite, strict=True) if not good), NEVER)
        if not self.run.processes.any(bad != NEVER):
            return
        bad = min(self.run.processes.gather(bad))
        again = next((recent for recent in self.recent if recent.step == bad), self.recent[-1])
        parts = unread[again.step].parts if again.step in unread else []
        raise self._stop(again, parts, self._what(parts, ()))

    def take_notices(self) -> Iterator[Notice]:
        """Notices since the last call."""
        notices, self.notices = self.notices, []
        yield from notices

    def _seen(
        self, parts: list[dict[str, Tensor]], parameters: Sequence[nn.Parameter], norm: Tensor | None
    ) -> Seen:
        if self.run.scaler is not None:
            return Seen(parts, None, None)
        if norm is not None:
            return Seen(parts, plain(norm), None)
        found, norm = watched([grad for p in parameters if (grad := p.grad) is not None], self._one)
        return Seen(parts, norm, found)

    def _is_finite(self, seen: Seen) -> bool:
        """Whether every loss and every gradient of a step is finite."""
        if self.run.processes.device.type != "cpu":
            return are_finite([seen])[0]
        # Read one by one: nothing waits, and nothing has to be put together.
        return all(map(math.isfinite, map(float, seen.values))) and not (
            seen.found is not None and seen.found > 0
        )

    def _what(self, parts: list[dict[str, Tensor]], parameters: Sequence[nn.Parameter]) -> str:
        names = [name for part in parts for name, value in part.items() if not bool(value.isfinite())]
        if not names:
            wrong = {id(p) for p in parameters if p.grad is not None and not bool(p.grad.isfinite().all())}
            found = [name for name, p in self.run.trainee.named_parameters() if id(p) in wrong]
            names = [f"gradient {found[0]}"] if found else []
        everywhere = [name for there in self.run.processes.gather(names[:1]) for name in there]
        if not everywhere:
            return "a gradient"
        if everywhere[0].startswith("gradient "):
            return f"the gradient of `{everywhere[0].removeprefix('gradient ')}`"
        return f"the loss `{everywhere[0]}`"

    def _stop(self, again: Recent, parts: list[dict[str, Tensor]], what: str) -> RunError:
        own = {
            "indices": [ids.tolist() for ids in again.indices],
            "generators": again.generators,
            "losses": [{name: float(value) for name, value in part.items()} for part in parts],
        }
        everyone = self.run.processes.gather(own)
        path = self.run.folder.root / f"replay_{again.step:08d}.pt"
        if self.run.processes.speaks:
            write_replay(path, {"step": again.step, "epoch": again.epoch, "processes": everyone})
        ids = [i for process in everyone for batch in process["indices"] for i in batch]
        more = ", ..." if len(ids) > SHOWN_IDS else ""
        kept = "the last checkpoint is whole; " if checkpoints(self.run.folder.checkpoints) else ""
        broken = [words for words in self.run.processes.gather(broken_images(self._group)) if words]
        if broken:
            return RunError.of(
                "KD730",
                f"{what} is not finite at step {again.step}: {broken[0]} (all of it in {path})",
                f"{kept}{LOOK_AT_IMAGES}",
            )
        return RunError.of(
            "KD730",
            f"{what} is not finite at step {again.step} "
            f"(samples {', '.join(str(i) for i in ids[:SHOWN_IDS])}{more}; all of it in {path})",
            f"{kept}lower the lr, clip gradients (`trainer.clip_grad_norm`), look at "
            "these samples, or say `trainer.on_nonfinite: skip`",
        )

    def _put_buffers_back(self) -> None:
        with torch.no_grad():
            for buffer, before in zip(self.run.trainee.buffers(), self._buffers, strict=True):
                buffer.copy_(before)


def write_replay(path: Path, content: dict[str, Any]) -> None:
    """Write a bad step to a file: step, epoch, and of each process sample ids, generators, losses."""
    write_whole(path, lambda file: torch.save(content, file))


def broken_images(batches: Iterable[Mapping[str, Any]]) -> str:
    """Which samples have images whose own values are not finite, in words; nothing where none has."""
    ids = [
        int(number)
        for batch in batches
        for number in batch["indices"][~batch["image"].flatten(1).isfinite().all(1)].tolist()
    ]
    if not ids:
        return ""
    listed = ", ".join(map(str, ids[:SHOWN_IDS])) + (", ..." if len(ids) > SHOWN_IDS else "")
    if len(ids) == 1:
        return f"the image of sample {listed} is not finite"
    return f"the images of samples {listed} are not finite"


LOOK_AT_IMAGES = (
    "look at these images, and at what the transforms or your Dataset make of them (a division by 0?)"
)


def or_images(found: Iterable[Diagnostic | None], batch: Mapping[str, Any]) -> list[Diagnostic]:
    """What was found of the losses on a batch; KD701 for its images instead, where they are why one is not finite."""
    problems = [one for one in found if one is not None]
    words = broken_images([batch]) if any(one.code == "KD701" for one in problems) else ""
    if not words:
        return problems
    path = ("dataset", "train", "dataset")
    return [Diagnostic(code="KD701", message=f"{words}: NaN or infinite", help=LOOK_AT_IMAGES, path=path)]


class BadSamples:
    """Samples that could not be read, over all processes, each once."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        for side, sample, name, reason in progress.bad_samples:
            loader = run.train_loader if side == "train" else run.test_loader
            if all(known.sample != sample for known in loader.bad_samples):
                loader.bad_samples.append(BadRecord(sample, name, reason))

    def take(self) -> Iterator[Notice]:
        """Bring the list and the count up to date; every process takes part.

        Raises RunError KD512 where all processes together found more than the budget allows.
        """
        run, progress = self.run, self.progress
        own = [
            (side, bad.sample, bad.name, bad.reason)
            for side, loader in (("train", run.train_loader), ("test", run.test_loader))
            for bad in loader.bad_samples
        ]
        known = {(side, sample) for side, sample, _, _ in progress.bad_samples}
        new = {}
        for rows in run.processes.gather(own):
            for side, sample, name, reason in rows:
                if (side, sample) not in known:
                    new[side, sample] = (side, sample, name, reason)
        if not new:
            return
        progress.bad_samples = [*progress.bad_samples, *new.values()]
        path = run.folder.root / "bad_samples.jsonl"
        if run.processes.speaks:
            lines = [
                json.dumps(
                    dict(zip(("side", "sample", "name", "reason"), row, strict=True)), ensure_ascii=False
                )
                for row in progress.bad_samples
            ]
            write_whole(path, "".join(f"{line}\n" for line in lines))
        yield Notice(
            message=f"{len(progress.bad_samples)} sample(s) can't be read and are left out; they are listed in {path}",
            level="warning",
        )
        self._within_budget(path)

    def _within_budget(self, path: Path) -> None:
        """A count of the training side's is one of both sides together; a share is of each side."""
        run, rows = self.run, self.progress.bad_samples
        dataset = run.spec.dataset
        for side, part, loader in (
            ("train", dataset.train, run.train_loader),
            ("test", dataset.test, run.test_loader),
        ):
            budget, samples = part.dataloader.kwargs.bad_sample_budget, loader.facts.num_samples
            own = sum(row[0] == side for row in rows)
            number = own if isinstance(budget, float) or side == "test" else len(rows)
            over = number > allowed(budget, samples) and (isinstance(budget, float) or side == "train")
            if not over and not (samples and own >= samples):
                continue
            what = "training" if side == "train" else "test"
            raise RunError.of(
                "KD512",
                f"{number} samples can't be read, more than `bad_sample_budget` allows "
                f"({budget_text(budget, samples)})"
                if over
                else f"none of the {samples} {what} samples can be read",
                f"they are listed in {path}; mend the data, or raise `bad_sample_budget`",
            )
