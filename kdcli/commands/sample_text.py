"""The text of a sample with other values at some of its keys; comments and layout stay."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kdcli.commands.samples import MODELINE
from kdcli.spec.text.nodes import plain_value

_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./@+:-]*(?: [\w./@+:-]+)*", re.ASCII)


class SampleText:
    """A sample's text that is changed value by value; `str()` gives it with all changes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def put(self, path: str, value: Any, *, beside: Mapping[str, Any] | None = None) -> None:
        """Write a value at a dotted key that the sample has, in one line; behind it, keys that it lacks.

        Where the sample has an alias there, the value that it stands for is changed.
        """
        start, end = self._span(path)
        line = self.text[self.text.rfind("\n", 0, start) + 1 : start]
        margin = " " * (len(line) - len(line.lstrip()))
        more = "".join(f"\n{margin}{key}: {inline(one)}" for key, one in (beside or {}).items())
        stop = self.text.find("\n", end)
        # What a comment says of the sample's own value need not hold for this one.
        rest = re.sub(r"\s+#.*", "", self.text[end:stop])
        self.text = self.text[:start] + inline(value) + rest + more + self.text[stop:]

    def block(self, key: str, value: Any) -> None:
        """Write a top-level key anew, as a block; it is added at the end where the sample lacks it."""
        dumped = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=10**6)
        found = re.compile(rf"^{re.escape(key)}:.*\n(?:[ -].*\n)*", re.MULTILINE)
        if found.search(self.text):
            self.text = found.sub(lambda _: dumped, self.text, count=1)
        else:
            self.text = f"{self.text.rstrip()}\n\n{dumped}"

    def begin(self, lines: Sequence[str]) -> None:
        """Replace the comment that the sample begins with by these lines, and take its marks `<--` out."""
        rest = self.text.removeprefix(MODELINE)
        while rest.startswith(("#", "\n")):
            rest = rest.split("\n", 1)[1]
        head = "".join(f"# {line}".rstrip() + "\n" for line in lines)
        self.text = MODELINE + head + "\n" + re.sub(r"\s+# <--.*", "", rest)

    def uncomment(self, first: str) -> None:
        """Make the commented lines that begin with the key `first`, and are below it, part of the spec."""
        found = re.search(rf"^( *)# {re.escape(first)}:\n(?:\1#   .*\n)*", self.text, re.MULTILINE)
        assert found is not None, first
        plain = re.sub(r"^( *)# ", r"\1", found[0], flags=re.MULTILINE)
        self.text = self.text.replace(found[0], plain)

    def _span(self, path: str) -> tuple[int, int]:
        """Where the value at a dotted key stands, without its anchor."""
        node: Any = yaml.compose(self.text, Loader=yaml.SafeLoader)
        for step in path.split("."):
            if isinstance(node, yaml.SequenceNode):
                node = node.value[int(step)]
                continue
            node = next(value for key, value in node.value if key.value == step)
        start, end = node.start_mark.index, node.end_mark.index
        anchor = re.match(r"&\S+\s+", self.text[start:end])
        return start + (anchor.end() if anchor else 0), end


def inline(value: Any) -> str:
    """A value as YAML in one line, as the samples write it; the text `*name` is an alias."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inline(key)}: {inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and plain_value(value) == value and ": " not in f"{value} "
        return value if plain or re.fullmatch(r"\*\w+", value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return f"{value:.12g}"
    return json.dumps(value)
