"""The words of the command line, sorted before they are parsed."""

from __future__ import annotations

from pathlib import Path

AUTO = "auto"
"""`--resume` means the newest valid checkpoint."""


def files_and_changes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """`key=value` sets, unless it is a file; all else is a file."""
    changes = [word for word in arguments if "=" in word and not Path(word).exists()]
    return [word for word in arguments if word not in changes], changes


def with_optional_values(arguments: list[str]) -> list[str]:
    """`--resume` and `--files` may stand without a value: they are given `auto` and `full` then.

    A value of `--files` follows an equals sign: the word after it is a spec.
    """
    result = []
    for index, argument in enumerate(arguments):
        result.append("--files=full" if argument == "--files" else argument)
        if argument == "--resume" and not _is_checkpoint(arguments[index + 1 : index + 2]):
            result.append(AUTO)
    return result


def _is_checkpoint(following: list[str]) -> bool:
    """Whether the word after `--resume` belongs to it: no option, no spec, no `key=value`."""
    if not following or following[0].startswith("-"):
        return False
    word = following[0]
    return Path(word).suffix not in (".yaml", ".yml") and ("=" not in word or Path(word).exists())
