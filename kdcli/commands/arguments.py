"""The words of the command line, sorted before they are parsed."""

from __future__ import annotations

from pathlib import Path


def files_and_changes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """`key=value` sets, unless it is a file; all else is a file."""
    changes = [word for word in arguments if "=" in word and not Path(word).exists()]
    return [word for word in arguments if word not in changes], changes


def with_optional_values(arguments: list[str]) -> list[str]:
    """`--resume` may stand without a value: it is given `auto` then."""
    result = []
    for index, argument in enumerate(arguments):
        result.append(argument)
        if argument == "--resume":
            following = arguments[index + 1] if index + 1 < len(arguments) else None
            if following is None or following.startswith("-") or not Path(following).exists():
                result.append("auto")
    return result
