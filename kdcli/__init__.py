"""kdcli distils vision models from a YAML spec: from the command line, or from Python.

    import kdcli

    result = kdcli.train("cfg.yaml")
    kdcli.evaluate(result)
    student = kdcli.load_student("runs/cfg")

`import kdcli` loads neither torch nor anything else: each name is imported when it is first used.
"""

from importlib import import_module

TYPE_CHECKING = False  # true to type checkers, which know the name; typing's own would have to be imported

if TYPE_CHECKING:
    from kdcli.api.measure import evaluate, load_student
    from kdcli.api.objects import Data
    from kdcli.api.result import Measured, Result
    from kdcli.api.spec import Spec
    from kdcli.api.train import train
    from kdcli.api.validate import validate
    from kdcli.errors import Diagnostic, Interrupted, KdError, RunError, SpecError, UsageError

__version__ = "0.2.0"

__all__ = [
    "Data",
    "Diagnostic",
    "Interrupted",
    "KdError",
    "Measured",
    "Result",
    "RunError",
    "Spec",
    "SpecError",
    "UsageError",
    "__version__",
    "evaluate",
    "load_student",
    "train",
    "validate",
]

_MODULES = {
    "Data": "kdcli.api.objects",
    "Diagnostic": "kdcli.errors",
    "Interrupted": "kdcli.errors",
    "KdError": "kdcli.errors",
    "Measured": "kdcli.api.result",
    "Result": "kdcli.api.result",
    "RunError": "kdcli.errors",
    "Spec": "kdcli.api.spec",
    "SpecError": "kdcli.errors",
    "UsageError": "kdcli.errors",
    "evaluate": "kdcli.api.measure",
    "load_student": "kdcli.api.measure",
    "train": "kdcli.api.train",
    "validate": "kdcli.api.validate",
}
"""Where each name comes from."""


if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module 'kdcli' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
