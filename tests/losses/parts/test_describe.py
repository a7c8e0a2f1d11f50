"""What `kdcli methods` says of a loss."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdcli.losses import LOSSES
from kdcli.losses.parts.describe import describe
from tests.losses.cases import keyword_only


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_described_as_it_is(name: str) -> None:
    description = describe(name)
    assert description.summary and description.paper.startswith('"')
    assert description.arxiv is not None or any(c.isdigit() for c in description.paper)
    assert "\n" not in description.summary + description.paper
    options = [*keyword_only(LOSSES[name].load()), "loss_weight"]
    assert [o.name for o in description.options] == [n for n in options if n not in LOSSES[name].preset]
    assert description.options[-1].default == LOSSES[name].weight


def test_one_description() -> None:
    description = describe("dkd")
    assert description.kind == "logit"
    assert description.needs == ("a teacher", "labels")
    assert description.arxiv == "2203.08679"
    assert description.paper == '"Decoupled Knowledge Distillation"'
    assert {o.name: o.default for o in description.options}["beta"] == 8.0


def test_the_table_and_its_descriptions_do_without_torch() -> None:
    code = (
        "import sys; from kdcli.losses import LOSSES; from kdcli.losses.parts.describe import describe; "
        "[describe(n) for n in LOSSES]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
