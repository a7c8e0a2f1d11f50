"""Exceptions of the user's network, data and machine, as diagnostics: what was being done, what failed, where, the fix.

Whose fault an exception is, the innermost frames of its traceback say (`failure`). What is nobody's but kdcli's own
stays an exception, and ends in exit 3.
"""

from __future__ import annotations

import dis
import errno
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import ClassVar, Literal

from kdcli.disk import REASONS, is_about_the_name, reason_of, refused
from kdcli.errors import Diagnostic, Interrupted, KdError, RunError, SpecPath

Owner = Literal["kdcli", "user", "library", "python"]

PLUGINS: set[str] = set()
"""The packages of `--plugin` whose code this process has imported: the user's, wherever they are installed."""

CORE = frozenset(
    "torch torchvision numpy PIL pydantic pydantic_core yaml safetensors rich typer filelock".split()
)
"""The modules of packages without which kdcli does nothing."""

MOST = 300
"""So many characters of an exception's first line are shown."""

_traced: list[BaseException] | None = None
"""The exceptions that became diagnostics; None where nobody asks for tracebacks."""

_KDCLI = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PYTHON = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_IN_TEXT = re.compile(r'^ *File "(.+)", line (\d+), in (.+)$', flags=re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Frame:
    """A line of a traceback. package: the plugin that the code belongs to."""

    owner: Owner
    file: str
    line: int
    function: str
    package: str | None = None

    def __str__(self) -> str:
        where = f"kdcli/{self.file[len(_KDCLI) :]}" if self.owner == "kdcli" else self.file
        return f"{where}:{self.line}, in {self.function}"


@dataclass(frozen=True, slots=True)
class Known:
    """A failure whose fix is known: words of the exception, its code and what to do."""

    words: re.Pattern[str]
    code: str
    help: str


def _known(words: str, code: str, help: str) -> Known:
    return Known(re.compile(words, flags=re.IGNORECASE | re.DOTALL), code, help)


OUT_OF_MEMORY = "KD724"
ONE_SAMPLE = "KD744"
PEER_LOST = "KD722"

KNOWN = (
    _known(
        r"OutOfMemoryError|MemoryError|CUDA out of memory|can't allocate memory|cannot allocate memory|bad_alloc"
        r"|not enough memory: you tried to allocate|(?:CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|failed to map segment",
        OUT_OF_MEMORY,
        "lower `dataset.train.batch_sampler.kwargs.batch_size`, the size of the images or `num_workers`",
    ),
    _known(
        r"expected more than 1 value per channel when training",
        ONE_SAMPLE,
        "BatchNorm can't normalise over a single value, and this batch holds one sample: say `drop_last: true` under"
        " `dataset.batch_sampler.kwargs`, or choose a `batch_size` that leaves no batch of one",
    ),
    _known(
        r"use_reentrant=True|mark a variable ready only once",
        "KD745",
        "call torch.utils.checkpoint with `use_reentrant=False` there: the other kind knows neither"
        " torch.autograd.grad nor several processes",
    ),
    _known(
        r"finished reduction in the prior iteration|parameters that were not used in producing",
        "KD746",
        "with several processes each parameter must get a gradient at each step: let a block that is skipped take"
        " part with weight 0 (`x + 0 * block(x)`), or train in one process",
    ),
    _known(
        r"\bgloo\b|DistBackendError|DistNetworkError|NCCL (?:error|communicator)",
        PEER_LOST,
        "look at what the other process said first; then continue with `--resume`",
    ),
    _known(
        r"SparseAdam does not support dense gradients|sparse gradients",
        "KD440",
        "take an optimizer for dense gradients, such as Adam",
    ),
    _known(
        r"Tried to step \d+ times",
        "KD443",
        "`total_steps` (or `epochs` times `steps_per_epoch`) counts optimizer steps: give it all that the run has",
    ),
    _known(
        r"device-side assert",
        "KD747",
        "a number that serves as an index, mostly a label, is out of range: run with `--device cpu`, where the"
        " message says which, or with CUDA_LAUNCH_BLOCKING=1",
    ),
    _known(
        r"Target -?\d+ is out of bounds",
        "KD747",
        "the target is a label, and is none of the classes 0 to K - 1 of a network with K logits: labels that count"
        " from 1 need `label - 1`, else `num_classes` is too small",
    ),
    _known(
        r"expected scalar type \w+ but found (?:Half|BFloat16|Float)|(?:must|to) have the same dtype"
        r"|Input type .* and (?:weight|bias) type .* should be the same",
        "KD748",
        "under autocast some tensors are half precision: let the code follow the input's type (`x.to(weight.dtype)`),"
        " or say `runtime: {precision: fp32}`",
    ),
    _known(
        r"view size is not compatible with input tensor's size and stride",
        "KD796",
        "write `.flatten(1)` or `.reshape(...)` in place of `.view(...)`; or, where images are kept channels last,"
        " `runtime: {channels_last: false}`",
    ),
    _known(
        r"does not have a deterministic implementation|Deterministic behavior was enabled with",
        "KD791",
        "leave `runtime.deterministic` out, or take another layer or loss: torch has no version of this operation that"
        " gives the same bits each time",
    ),
    _known(r"no space left on device|disk quota exceeded|file too large", "KD740", REASONS[errno.ENOSPC][1]),
    _known(
        r"too many open files|received \d+ items of ancdata",
        "KD521",
        REASONS[errno.EMFILE][1],
    ),
    _known(
        r"unable to (?:allocate|open|mmap) shared memory|/dev/shm",
        "KD516",
        "data workers hand batches over in /dev/shm, which is full or small: lower `num_workers`, or give the"
        " container more (`--shm-size`)",
    ),
)
"""Failures whose fix is known, the first that fits counts."""

_TORCH_INDEX = re.compile(r"Dimension (?:out of range|specified as)|too many indices for tensor")


class Failed(RunError):
    """What failed inside `doing` blocks; each block around it puts what it was doing in front."""

    def __init__(self, failure: Diagnostic, done: tuple[str, ...]) -> None:
        self.failure, self.done = failure, done
        message = f"{', '.join(done)} failed: {failure.message}" if done else failure.message
        super().__init__(replace(failure, message=message))

    def within(self, what: str, path: SpecPath | None) -> Failed:
        """The same failure as a block around it tells it."""
        inner = self.failure
        return Failed(inner if inner.path is not None else replace(inner, path=path), (what, *self.done))


class doing:
    """A `with` block that says what is being done, for the error of whatever of the user's fails inside it.

    what: `training step 3`, or a function that gives it where it changes or costs time. path: in the spec. An error
    of kdcli's own that has no place gets the path; other exceptions become Failed, or pass where kdcli is at fault.
    """

    __slots__ = ("path", "what")

    listener: ClassVar[Callable[[doing, bool], None] | None] = None
    """Hears of each block that begins (True) or ends."""

    def __init__(self, what: str | Callable[[], str], path: SpecPath | None = None) -> None:
        self.what, self.path = what, path

    @property
    def text(self) -> str:
        """What is being done."""
        return self.what if isinstance(self.what, str) else self.what()

    def __enter__(self) -> None:
        if doing.listener is not None:
            doing.listener(self, True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if doing.listener is not None:
            doing.listener(self, False)
        if not isinstance(error, Exception):
            return
        what = self.text
        if isinstance(error, Failed):
            raise error.within(what, self.path) from error.__cause__
        if isinstance(error, KdError):
            if isinstance(error, Interrupted):
                return
            placeless = all(one.path is None and one.span is None for one in error.diagnostics)
            if self.path is not None and placeless and len(error.diagnostics) == 1:
                raise Failed(replace(error.diagnostics[0], path=self.path), (what,)) from error
            return
        found = failure(error, running=True)
        # That another process is gone is told where the processes meet.
        if found is not None and found.code != PEER_LOST:
            raise Failed(replace(found, path=self.path), (what,)) from error


def failure(error: BaseException, *, running: bool) -> Diagnostic | None:
    """The finding for an exception that the user's network, data or machine has raised; None where kdcli is at fault.

    running: whether it was raised while something of the user's was built, run, read or written. Then kdcli is at
    fault where one of its own frames is the innermost (Python's library counts as part of it), unless torch refused
    an operation there; a library that raises below kdcli was given something of the user's. Without it, what a
    plugin's code or the system raised is the user's and nothing else. What the system refuses (OSError, memory)
    is never kdcli's fault, and code of a plugin never kdcli's.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return None
    broken = _broken_package(error)
    if broken is not None:
        return broken
    raised = _Raised(error)
    named = [frame for frame in raised.frames if frame.owner != "python"]
    last = named[-1] if named else None
    users = _users(named)
    if isinstance(error, OSError | ValueError) and users is None:
        if isinstance(error, OSError) and raised.known is None and error.filename is not None:
            return refused(os.fsdecode(error.filename), error).diagnostics[0]
        if isinstance(error, ValueError) and running and is_about_the_name(error):
            return Diagnostic(code="KD521", message="a path has no NUL character")
    if not _of_the_world(error, raised, last, running=running):
        return None
    # Where no code of the user's has a part, the line of kdcli that called the library says most.
    frame = users or next((one for one in reversed(named) if one.owner == "kdcli"), last)
    place = f" ({frame})" if frame is not None else ""
    code, help = "KD749", None
    if frame is not None and frame.package is not None:
        code = "KD496"
        help = "mend it there; `kdcli validate` runs every network and loss once, before any training"
    if raised.known is not None:
        code, help = raised.known.code, raised.known.help
    elif isinstance(error, OSError):
        help = reason_of(error)[1] or help
    what = f"code of the plugin `{frame.package}` failed: " if code == "KD496" and frame is not None else ""
    return Diagnostic(code=code, message=f"{what}{raised.text}{place}", help=help)


def _broken_package(error: BaseException) -> Diagnostic | None:
    """KD797 where a package that kdcli can't do without fails while it is imported, or is not there."""
    if isinstance(error, KdError):
        return None
    trace, module = error.__traceback__, ""
    while trace is not None and not module:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if trace.tb_frame.f_code.co_name == "<module>" and name.partition(".")[0] in CORE:
            module = name
        trace = trace.tb_next
    if isinstance(error, ModuleNotFoundError) and error.name in CORE:
        module = error.name
    if not module:
        return None
    part = module if module in CORE else f"`{module}`"
    help = (
        "the packages of this environment don't fit each other: install torch and torchvision together in a new one;"
        " `kdcli doctor` shows what is here"
    )
    if isinstance(error, ImportError) and error.path and error.name in sys.stdlib_module_names:
        if not os.path.realpath(error.path).startswith(_PYTHON):
            help = f"`{error.path}` hides Python's own module `{error.name}`: give it another name"
    return Diagnostic(code="KD797", message=f"{part} can't be imported: {text_of(error)}", help=help)


def keep_tracebacks() -> None:
    """From now on remember each exception that becomes a diagnostic, for `tracebacks`."""
    global _traced
    _traced = []


def tracebacks(also: BaseException | None = None) -> str:
    """The tracebacks of all exceptions that became diagnostics, and of one more; then begin anew."""
    global _traced
    errors, _traced = [*(_traced or ()), *([] if also is None else [also])], None if _traced is None else []
    # One that a later one was raised from is part of that one's traceback.
    inner = {id(error.__cause__) for error in errors}
    return "\n".join("".join(traceback.format_exception(one)) for one in errors if id(one) not in inner)


def _remember(error: BaseException) -> None:
    if _traced is not None and all(error is not other for other in _traced):
        _traced.append(error)


class _Raised:
    """An exception: its text, its frames from the outermost to the innermost, and the fix where it is known.

    A data worker hands its exception on as text, with the worker's traceback.
    """

    def __init__(self, error: BaseException) -> None:
        self.frames = list(_frames(error.__traceback__))
        # Raised by a statement of the innermost frame, not by what it called.
        self.stated = _stated(error.__traceback__)
        self.text = text_of(error)
        whole = f"{type(error).__name__}: {error}"
        _, _, handed_on = str(error).partition("Original Traceback")
        if handed_on:
            self.frames += [_frame(file, int(line), name) for file, line, name in _IN_TEXT.findall(handed_on)]
            self.stated = False
            whole = handed_on.strip().splitlines()[-1]
            self.text = whole[:MOST]
        self.known = next((known for known in KNOWN if known.words.search(whole)), None)


def _of_the_world(error: BaseException, raised: _Raised, last: Frame | None, *, running: bool) -> bool:
    """Whether an exception is of the user's code, the data or the machine; last: its innermost frame."""
    if isinstance(error, OSError | MemoryError) or (raised.known and raised.known.code == OUT_OF_MEMORY):
        return True
    if last is None:
        return False
    if not running:
        return last.package is not None
    if last.owner != "kdcli" or (raised.known is not None and not raised.stated):
        return True
    if raised.stated:
        # kdcli refuses what it is given with ValueError; whatever else it raises is its own.
        return type(error) is ValueError
    if isinstance(error, RecursionError):
        return False
    return isinstance(error, RuntimeError) or bool(
        isinstance(error, IndexError) and _TORCH_INDEX.search(str(error))
    )


def running_line(frame: FrameType | None, within: CodeType) -> str | None:
    """The innermost line of the user's that is running, as `nets.py:12, in forward`; None without one.

    within: the function below which it is looked for.
    """
    while frame is not None and frame.f_code is not within:
        code = frame.f_code
        here = _frame(
            code.co_filename, frame.f_lineno, code.co_name, str(frame.f_globals.get("__name__", ""))
        )
        if here.owner == "user":
            return str(here)
        frame = frame.f_back
    return None


def _users(frames: list[Frame]) -> Frame | None:
    """The innermost frame of the user's."""
    return next((frame for frame in reversed(frames) if frame.owner == "user"), None)


def _frames(trace: TracebackType | None) -> Iterator[Frame]:
    for frame, line in traceback.walk_tb(trace):
        module = str(frame.f_globals.get("__name__", ""))
        yield _frame(frame.f_code.co_filename, line, frame.f_code.co_name, module)


def _frame(file: str, line: int, function: str, module: str | None = None) -> Frame:
    """A frame and whose it is. module: the name of the module, where it is known."""
    package = module.partition(".")[0] if module is not None else _package_at(file)
    if package in PLUGINS:
        return Frame("user", file, line, function, package)
    if file.startswith(_KDCLI):
        return Frame("kdcli", file, line, function)
    if _INSTALLED.search(file):
        return Frame("library", file, line, function)
    generated = file.startswith("<") and module != "__main__"
    if generated or os.path.realpath(file).startswith(_PYTHON):
        return Frame("python", file, line, function)
    return Frame("user", file, line, function)


def _package_at(file: str) -> str | None:
    """The plugin in whose folder a file lies."""
    for package in PLUGINS:
        origin = getattr(sys.modules.get(package), "__file__", None)
        if origin is not None:
            root = Path(origin).parent if Path(origin).name == "__init__.py" else Path(origin)
            if Path(file) == root or root in Path(file).parents:
                return package
    return None


def _stated(trace: TracebackType | None) -> bool:
    """Whether the innermost frame stands at a `raise` or `assert` of its own."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_lasti < 0:
        return False
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")


def text_of(error: BaseException) -> str:
    """Type and first line of an exception: `ValueError: too few values`."""
    _remember(error)
    text = str(error.msg if isinstance(error, SyntaxError) else error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else ""
    if len(line) > MOST:
        # torch explains itself at length; its first sentences say what is wrong.
        sentences, _, _ = line[:MOST].rpartition(". ")
        line = f"{sentences}." if sentences else f"{line[:MOST]}..."
    return f"{type(error).__name__}{': ' if line else ''}{line}"


def with_place(error: BaseException) -> str:
    """Type and first line of an exception, and the line of the user's that it comes from, where one does."""
    return f"{text_of(error)}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """The innermost line of the user's in an exception's traceback, ` (nets.py:12, in forward)`; empty without one."""
    _remember(error)
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" ({error.filename}:{error.lineno})"
    frame = _users(list(_frames(error.__traceback__)))
    return f" ({frame})" if frame is not None else ""


def own_mistake(error: BaseException) -> bool:
    """Whether an exception is an assertion of kdcli's own, which no rehearsal may take for the user's."""
    named = [frame for frame in _frames(error.__traceback__) if frame.owner != "python"]
    return isinstance(error, AssertionError) and bool(named) and named[-1].owner == "kdcli"


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the machine has too little memory."""
    if isinstance(error, KdError):
        return any(one.code == OUT_OF_MEMORY for one in error.diagnostics)
    known = _Raised(error).known
    return known is not None and known.code == OUT_OF_MEMORY
