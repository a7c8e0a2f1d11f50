"""Networks handed to torch.compile, once their taps are in place and the guard has seen them run."""

from __future__ import annotations

from collections.abc import Iterator

from kdcli.records import Notice
from kdcli.training.run import Run


def compile_networks(run: Run) -> Iterator[Notice]:
    """Compile what `runtime.compile` names: the student, the teachers, or (true) all of them."""
    which = run.spec.runtime.compile
    names = []
    if which in (True, "student") and run.trainee.taps is not None:
        run.trainee.taps.compile()
        names.append("the student")
    if which in (True, "teachers"):
        for name, teacher in run.teachers.items():
            teacher.taps.compile()
            names.append(name)
    if names:
        yield Notice(message=f"torch.compile makes {' and '.join(names)} faster: the first steps take longer")
