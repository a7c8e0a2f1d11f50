"""Names for what a model returns: its own, or those that the spec gives."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcli.errors import SpecError
from kdcli.models.module import named_outputs

LOGITS, MAP = torch.rand(2, 5), torch.rand(2, 3, 4, 4)
Two = namedtuple("Two", "scores extra")


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


def named(result: Any, *names: str) -> dict[str, Any]:
    return named_outputs(result, names or None, "model", ("net", 0))


@pytest.mark.parametrize(
    ("result", "names", "expected"),
    [
        (LOGITS, (), {"logits": LOGITS}),
        (OrderedDict(logits=LOGITS, loss=None), (), {"logits": LOGITS}),
        (Answer(LOGITS), (), {"logits": LOGITS}),
        (Two(LOGITS, None), (), {"scores": LOGITS}),
        ((LOGITS, MAP), ("logits", "features"), {"logits": LOGITS, "features": MAP}),
        ([MAP, LOGITS], ("_", "logits"), {"logits": LOGITS}),
        (((MAP, MAP), LOGITS), ("features", "logits"), {"features": [MAP, MAP], "logits": LOGITS}),
        ((LOGITS, {"feats": [MAP]}), ("logits", "all"), {"logits": LOGITS, "all": {"feats": [MAP]}}),
        ((LOGITS, None), ("logits", "attention"), {"logits": LOGITS}),
        (MAP, ("features",), {"features": MAP}),
        (LOGITS, ("logits", "auxiliary"), {"logits": LOGITS}),
        (Two(LOGITS, MAP), ("logits", "features"), {"logits": LOGITS, "features": MAP}),
    ],
)
def test_named(result: Any, names: tuple[str, ...], expected: dict[str, Any]) -> None:
    found = named(result, *names)
    assert list(found) == list(expected)
    assert all(found[name] is expected[name] or found[name] == expected[name] for name in found)


@pytest.mark.parametrize(
    ("result", "names", "code", "words"),
    [
        ((LOGITS, MAP), (), "KD411", "`outputs: [logits, features]`"),
        ([[MAP, MAP], LOGITS], (), "KD411", "`outputs: [features, logits]`"),
        ((MAP, LOGITS, LOGITS), (), "KD411", "`outputs: [features, logits, features2]`"),
        (None, (), "KD411", "a whole model returns its logits"),
        (3.0, ("logits",), "KD411", "a whole model returns its logits"),
        ((LOGITS, MAP), ("logits",), "KD473", "`outputs: [logits, features]`"),
        (MAP, ("one", "two"), "KD473", "leave `outputs` out"),
        ({"logits": LOGITS}, ("logits",), "KD473", "leave `outputs` out"),
    ],
)
def test_what_has_no_name_or_names_that_do_not_fit(
    result: Any, names: tuple[str, ...], code: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        named(result, *names)
    (found,) = caught.value.diagnostics
    assert found.code == code and found.help is not None and words in found.help
    assert found.path == (("net", 0) if code == "KD411" else ("net", 0, "outputs"))
