"""Whole models that return tuples, with their entries named in the spec: trained, measured, tapped, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdcli.analysis.comparison import compare
from kdcli.check.check import CheckOptions, check
from kdcli.distill.mimickers.base import BaseMimicker
from kdcli.distill.trainee import Trainee
from kdcli.errors import SpecError
from kdcli.exports.export import export
from kdcli.models.heads import ClsPostProcess
from kdcli.models.network import Network, build_network
from kdcli.models.weights import load_weights
from kdcli.parallel.distributed import Processes
from kdcli.records import Evaluation, Finished
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.schema import Job, JobStudent
from kdcli.training.run import RunOptions
from tests.training.runs import SPEC, run_of, spec_of, train_all

PLUGINS = ("tests",)
OPTIONS = RunOptions(plugins=PLUGINS)
CPU = Processes(device=torch.device("cpu"))
NETS = "tests.training.label_nets"


def pair(*changes: str, kind: str = "Pair", outputs: str = "[features, logits]") -> ParsedSpec:
    """Student and teacher of one kind, joined at a map that is named as an output."""
    said = f", outputs: {outputs}" if outputs else ""
    return spec_of(
        SPEC,
        f"net={{name: model, type: '{NETS}:{kind}'{said}}}",
        f"teacher0={{name: model, type: '{NETS}:{kind}', kwargs: {{width: 8}}{said}}}",
        "mimic.cfgs.loss={type: l2_loss, adapter: auto}",
        "mimic.student.mimic_name=['features[1]']",
        "mimic.teacher0.mimic_name=['features[1]']",
        "trainer.max_epoch=1",
        "saver.save_dir=run",
        *changes,
    )


def findings(parsed: ParsedSpec) -> list[Any]:
    return list(check(parsed, CheckOptions(plugins=PLUGINS)).findings)


@pytest.mark.parametrize(
    ("kind", "outputs"), [("Pair", "[features, logits]"), ("Triple", "[logits, features, _]")]
)
def test_a_tuple_with_names_is_a_network_like_any_other(kind: str, outputs: str) -> None:
    parsed = pair(kind=kind, outputs=outputs)
    assert findings(parsed) == []
    with run_of(parsed, plugins=PLUGINS) as run:
        (row,) = run.joined.pairs
        assert (row.student_shape, row.teacher_shape) == ("[B, 4, 4, 4]", "[B, 8, 4, 4]")
        net = run.teachers["teacher0"].net
        batch = dict(next(run.train_loader.batches(0)))
        view = run.teachers["teacher0"].view(batch)
        features, logits = net.model.run(batch["image"])
        assert torch.equal(view.features["features[1]"], features[1])  # type: ignore[arg-type]
        with torch.no_grad():
            outputs_made = net(batch)
        assert set(outputs_made) == {"features", "logits"}
        assert isinstance(outputs_made["features"], list) and torch.equal(outputs_made["logits"], logits)
    records = train_all(parsed, plugins=PLUGINS)
    assert any(isinstance(r, Evaluation) for r in records)
    (finished,) = (r for r in records if isinstance(r, Finished))
    assert set(finished.teachers) == {"teacher0"}
    rows, _ = compare(parsed, OPTIONS, CPU, None)
    assert rows[0].network == "student" and rows[0].metrics["top1"] == finished.last["top1"]


def test_a_named_student_is_exported() -> None:
    parsed = pair()
    train_all(parsed, plugins=PLUGINS)
    done = export(parsed, OPTIONS, "torch-export", Path("student.pt2"))
    assert done.proof.difference < 1e-5
    program: Any = torch.export.load(done.path).module()
    net = build_network(parsed.spec.net, path=("net",), plugins=PLUGINS)
    load_weights(net, Path("run/student.safetensors"))
    image = torch.rand(3, 1, 8, 8)
    assert torch.allclose(program(image), net.eval()({"image": image})["logits"], atol=1e-5)


def test_without_names_the_line_to_write_is_said() -> None:
    found = findings(pair(outputs=""))
    assert {f.code for f in found} == {"KD411"}
    assert "`outputs: [features, logits]`" in found[0].help
    triple = findings(pair(kind="Triple", outputs=""))
    assert "`outputs: [logits, features, features2]`" in triple[0].help


def test_auxiliary_heads_of_training_alone() -> None:
    changes = ("mimic.cfgs.loss={type: kd_loss}", "mimic.student.mimic_name=[logits]",
               "mimic.teacher0.mimic_name=[logits]")  # fmt: skip
    parsed = pair(*changes, kind="TrainsWithMore", outputs="[logits, auxiliary]")
    assert findings(parsed) == []
    train_all(parsed, plugins=PLUGINS)


def test_a_dataclass_names_its_outputs_itself() -> None:
    layers = ("mimic.student.mimic_name=['hidden[0]']", "mimic.teacher0.mimic_name=['hidden[0]']")
    parsed = pair(*layers, kind="Named", outputs="")
    assert findings(parsed) == []
    train_all(parsed, plugins=PLUGINS)


def test_names_for_a_module_that_has_its_own() -> None:
    parsed = spec_of(SPEC, "net=[{name: backbone, type: resnet18, outputs: [features]}]")
    found = findings(parsed)
    assert "KD473" in {f.code for f in found}
    with pytest.raises(SpecError, match="names its outputs itself"):
        build_network(parsed.spec.net, path=("net",))


class Hits(nn.Module):
    """A module after the post-process."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """What it was given."""
        return {"seen": image}


class OwnMethod(BaseMimicker):
    """A method of one's own, which may read any output of the student."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


@pytest.mark.parametrize(
    ("after", "tap", "own", "counted"),
    [
        (False, "logits", False, False),
        (True, "logits", False, True),
        (False, "accuracy", False, True),
        (False, "logits", True, True),
    ],
)
def test_hits_are_counted_in_training_where_something_may_read_them(
    after: bool, tap: str, own: bool, counted: bool
) -> None:
    net = Network({"post": ClsPostProcess(), **({"after": Hits()} if after else {})})
    job = Job(student=JobStudent(mimic_name=(tap,)))
    trainee = Trainee(net, None, {"job": job}, {"job": OwnMethod()} if own else {})
    batch = {"image": torch.eye(3), "logits": torch.eye(3), "labels": torch.arange(3)}
    assert ("accuracy" in trainee.view(batch).outputs) is counted
    assert "accuracy" in net.get_submodule("post")(batch)  # by hand it counts them as ever


class Gives(nn.Module):
    """A whole model that returns one thing more than its logits."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The image as logits, and their sum."""
        return {"logits": image, self.name: image.sum()}


BATCH = {"image": torch.eye(3), "labels": torch.arange(3)}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("labels", "returns `labels`, which is what the batch holds"),
        ("image", "returns `image`"),
        ("loss", "module `post` gives the loss `loss`, which one before it has given"),
    ],
)
def test_no_output_hides_the_labels_or_another_loss(name: str, said: str) -> None:
    net = Network({"model": Gives(name), "post": ClsPostProcess()})
    with pytest.raises(SpecError, match=f"KD473: .*{said}"):
        net(BATCH)


def test_losses_of_several_post_processes_are_all_trained() -> None:
    net = Network(
        {
            "model": Gives("own_loss"),
            "a": ClsPostProcess(prefix="a", cls_loss={"type": "ce", "kwargs": {"loss_weight": 2.0}}),
            "b": ClsPostProcess(prefix="b"),
        }
    )
    losses = {name: float(value) for name, value in net(BATCH).items() if name.endswith("loss")}
    # Logits 1, 0, 0 for class 0: log(e + 2) - 1.
    assert losses == pytest.approx({"own_loss": 3.0, "a_loss": 2 * 0.551445, "b_loss": 0.551445}, abs=1e-5)
