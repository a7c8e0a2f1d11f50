"""Spec: from a file or a mapping, with changes; what it parses to and where it says that something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kdcli
from kdcli.spec.parse import parse, resolved_data
from tests.training.runs import SPEC


def test_a_mapping_and_its_file_are_one_spec(tmp_path: Path) -> None:
    file = tmp_path / "cfg.yaml"
    file.write_text(SPEC)
    of_file = kdcli.Spec.from_file(file).parsed()
    data = resolved_data(of_file.spec)
    data["saver"] = {"save_dir": Path(str(of_file.spec.saver.save_dir))}
    data["trainer"]["optimizer"]["kwargs"]["lr"] = np.float64(0.05)
    assert kdcli.Spec.from_dict(data).parsed().hash() == of_file.hash()
    assert parse(kdcli.Spec.from_dict(data).to_yaml(), "x.yaml").hash() == of_file.hash()


def test_changes_add_up_and_the_run_has_the_specs_name() -> None:
    from kdcli.training.build import run_name, run_root

    one = kdcli.Spec.from_dict(resolved_data(parse(SPEC, "x.yaml").spec) | {"saver": None}, name="mine")
    two = one.changed("trainer.max_epoch=7").changed("runtime.random_seed=5")
    parsed = two.parsed()
    assert (parsed.spec.trainer.max_epoch, parsed.spec.runtime.random_seed) == (7, 5)
    assert (run_name(parsed), run_root(parsed)) == ("mine-seed5", Path("runs/mine-seed5"))
    assert one.changes == ()


def test_what_is_wrong_is_said_with_its_place() -> None:
    wrong = {"net": {"type": "resnet18"}, "trainr": {}}
    found = kdcli.validate(kdcli.Spec.from_dict(wrong, name="mine"))
    assert found[0].span is not None and found[0].span.source == "<mine>"
    assert sorted({one.code for one in found}) == ["KD201", "KD203"]
    with pytest.raises(kdcli.SpecError, match=r"<mine>:\d+:1: error KD201: (.|\n)*`trainr`(.|\n)*`trainer`"):
        kdcli.train(kdcli.Spec.from_dict(wrong, name="mine"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"net": object()}, "not a `object`(.|\n)*student="),
        (3, "a spec can't be of type `int`"),
        ("nowhere.yaml", "cannot read spec `nowhere.yaml`"),
    ],
)
def test_what_is_no_spec(spec: object, said: str) -> None:
    with pytest.raises(kdcli.UsageError, match=said):
        kdcli.validate(spec)  # type: ignore[arg-type]
