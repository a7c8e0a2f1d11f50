"""Errors and diagnostics, as types.

    KdError                 anything a user can cause; carries diagnostics, never a traceback
    ├── SpecError           the spec is wrong                                   exit 1
    ├── RunError            the spec is right, the run failed                   exit 1
    ├── UsageError          the command line is wrong                           exit 2
    └── Interrupted         a signal stopped the run after a save               exit 130, 143

Everything else that escapes is kdcli's own fault (exit 3).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

SpecPath = tuple[str | int, ...]
"""Where in the (canonical) spec: ("mimic", "jobs", "mimic_job0", "student", "mimic_name", 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A place in a text that the user wrote: a file, standard input or a key=value argument.

    line and column count from 1; end_column is one past the last marked character; excerpt is the
    whole line. `written` is where an aliased, merged or included value was written down.
    """

    source: str
    line: int
    column: int
    end_column: int
    excerpt: str
    written: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One finding: a stable code, one terse message, where, and what to do.

    A finding made after parsing knows its place as a `path` into the spec (and whether the key or
    the value is meant); `ParsedSpec.locate` turns that into a span.
    """

    code: str
    message: str
    severity: Literal["error", "warning"] = "error"
    help: str | None = None
    path: SpecPath | None = None
    on_key: bool = False
    span: Span | None = None


class KdError(Exception):
    """An error that the user can mend; str() is the plain text of its diagnostics."""

    exit_code: ClassVar[int] = 1

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        found = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        assert found, "an error without a diagnostic"
        self.diagnostics = found
        super().__init__("\n".join(f"{d.code}: {d.message}" for d in found))

    def located(self, locate: Callable[[Diagnostic], Diagnostic]) -> Self:
        """The same error with the places of its diagnostics filled in."""
        self.diagnostics = tuple(locate(diagnostic) for diagnostic in self.diagnostics)
        return self


class SpecError(KdError):
    """The spec is wrong.

    sound: what is right in a spec that was read (ParsedSpec), and the paths of what was taken out; None if nothing is.
    """

    sound: Any = None

    @classmethod
    def at(
        cls,
        path: SpecPath,
        code: str,
        message: str,
        help: str | None = None,
        *,
        on_key: bool = False,
    ) -> SpecError:
        """One finding at a path into the spec."""
        return cls(Diagnostic(code=code, message=message, help=help, path=path, on_key=on_key))


class RunError(KdError):
    """The spec is right and the run failed: data, weights, device, disk, numbers."""

    @classmethod
    def of(cls, code: str, message: str, help: str | None = None) -> RunError:
        """One finding that has no place in the spec."""
        return cls(Diagnostic(code=code, message=message, help=help))


class UsageError(KdError):
    """The command line is wrong."""

    exit_code = 2

    @classmethod
    def of(cls, message: str, help: str | None = None) -> UsageError:
        """One finding about the arguments."""
        return cls(Diagnostic(code="KD001", message=message, help=help))


class Interrupted(KdError):
    """A signal stopped the run after its state was saved."""

    def __init__(self, diagnostic: Diagnostic, signal_number: int) -> None:
        super().__init__(diagnostic)
        self.signal_number = signal_number


class Findings:
    """Errors and warnings of independent parts, collected so that one does not hide the next."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Add an error at a place in the text."""
        self.found.append(Diagnostic(code=code, message=message, span=span, help=help))

    def warn(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Add a warning at a place in the text."""
        self.found.append(Diagnostic(code=code, message=message, span=span, help=help, severity="warning"))

    def part(self) -> _Part:
        """A `with` block whose error is kept, so that the next part is checked too."""
        return _Part(self.found)

    def raise_errors(self) -> None:
        """Raise SpecError with everything found, if an error is among it."""
        if any(finding.severity == "error" for finding in self.found):
            raise SpecError(self.found)


class _Part:
    """A `with` block that hands an error's diagnostics to `found`; a class, as training enters several a step."""

    __slots__ = ("found",)

    def __init__(self, found: list[Diagnostic]) -> None:
        self.found = found

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, KdError):
            return False
        self.found.extend(error.diagnostics)
        return True


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def cut_off(text: str, most: int = 60) -> str:
    """A text for a message, with `...` at its end where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


LONGEST_WORD = 200
"""Two words are compared in time that grows with the product of their lengths."""


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known words that `word` is most likely a slip of, best first; none where it is too long for a name."""
    if len(word) > LONGEST_WORD:
        return []
    return difflib.get_close_matches(word, list(known), n=most, cutoff=0.6)


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """A help line with the nearest names, or with all of them where there are few."""
    close = nearest(word, known)
    if close:
        return "did you mean " + " or ".join(f"`{name}`" for name in close) + "?"
    if 0 < len(known) <= 12:
        return "known names: " + ", ".join(sorted(known))
    return None
