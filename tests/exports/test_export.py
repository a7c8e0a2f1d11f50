"""Exports: read back and proved equal, told apart when they are not, and never half there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from kdcli.commands import run_or_spec
from kdcli.commands.options import EvalOptions
from kdcli.errors import RunError, UsageError
from kdcli.exports.export import Exported, export, not_exported, prove
from kdcli.exports.onnx import Onnx, PlainAttention
from kdcli.exports.safetensors import Safetensors, loading_lines
from kdcli.models.network import Network, build_network
from kdcli.models.weights import save_safetensors
from kdcli.spec.schema import ModuleSpec
from kdcli.tasks.classification.task import Classifier
from kdcli.training.run import RunOptions
from kdcli.training.run_folder import reopen
from tests.distill.methods import mimic_of
from tests.distill.specs import TEACHER, spec_with
from tests.training.runs import SPEC, spec_of, train_all

CHANGES = ("trainer.max_epoch=1", "trainer.test_freq=1", "saver.save_dir=run")


@pytest.fixture
def run() -> Path:
    train_all(spec_of(SPEC, *CHANGES))
    return Path("run")


def exported(root: Path, format: str, output: Path | None = None, **kwargs: Any) -> Exported:
    opened = reopen(root)
    return export(opened.parsed, opened.options, format, output, spec_hash=opened.spec_hash, **kwargs)


def test_safetensors_hold_the_student_and_what_it_expects(run: Path) -> None:
    done = exported(run, "safetensors")
    assert done.path == run / "run.safetensors" and done.proof.difference == 0.0 and done.real
    with safe_open(done.path, framework="pt") as file:
        metadata = file.metadata()
        assert not any("mimic" in name for name in file.keys())
    assert metadata["spec_hash"] == spec_of(SPEC, *CHANGES).hash()
    assert json.loads(metadata["input_shape"]) == [1, 8, 8]
    assert {"mean", "std", "class_names", "step", "metrics", "ema"} <= set(metadata)


@pytest.mark.slow
def test_torch_export_runs_any_batch(run: Path) -> None:
    done = exported(run, "torch-export", Path("out/student.pt2"))
    assert done.proof.difference < 1e-5
    extra = {"kdcli.json": ""}
    program: Any = torch.export.load(done.path, extra_files=extra).module()
    assert program(torch.rand(5, 1, 8, 8)).shape == (5, 4)
    assert json.loads(extra["kdcli.json"])["input_shape"] == "[1, 8, 8]"


@pytest.mark.slow
def test_onnx_runs_without_torch(run: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = exported(run, "onnx")
    assert done.proof.difference < 1e-4 and done.latency_ms > 0
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        (logits,) = session.run(None, {"image": torch.rand(batch, 1, 8, 8).numpy()})
        assert logits.shape == (batch, 4)
    assert session.get_modelmeta().custom_metadata_map["spec_hash"] == done.metadata["spec_hash"]
    assert [path.name for path in run.glob("*.onnx*")] == ["run.onnx"]


def test_a_spec_is_exported_from_its_run(run: Path) -> None:
    parsed = spec_of(SPEC, *CHANGES)
    done = export(parsed, RunOptions(), "safetensors", Path("student.safetensors"))
    assert done.source == "run/student_best.safetensors"
    assert done.path.exists()


class Wrong(Safetensors):
    """Answers with noise."""

    def read(self, path: Path, student: Any) -> Any:
        return lambda image: (student.eager(image)[0].detach() + 1.0,)


class Torn(Safetensors):
    """Dies while it writes."""

    def write(self, student: Any, example: Any, path: Path, metadata: Mapping[str, str]) -> None:
        path.write_bytes(b"half")
        raise ValueError("data-dependent branch\nmore")


@pytest.mark.parametrize(("maker", "code"), [("Wrong", "KD761"), ("Torn", "KD762")])
def test_what_goes_wrong_leaves_no_file(
    run: Path, maker: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcli import exports
    from kdcli.spec.tables import Target

    monkeypatch.setitem(exports.EXPORTS, "safetensors", Target(f"{__name__}:{maker}"))
    kept = Path("out/student.safetensors")
    kept.parent.mkdir()
    kept.write_bytes(b"an older one")
    with pytest.raises(RunError) as caught:
        exported(run, "safetensors", kept)
    assert [found.code for found in caught.value.diagnostics] == [code]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert kept.read_bytes() == b"an older one"


def test_a_forward_that_cannot_be_followed_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdcli.models.network import Network

    class Branching(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.flatten(1) if float(image.sum()) > 0 else image.flatten(1) * 2

    opened = reopen(run)
    net = Network({"model": Branching()}).eval()
    from kdcli.analysis.evaluated_networks import EvaluatedNetwork
    from kdcli.exports import export as module

    found = (EvaluatedNetwork("student", net, None, source=Path("nowhere")), [])
    monkeypatch.setattr(module, "student_of", lambda *_, key: found)
    with pytest.raises(RunError) as caught:
        export(opened.parsed, opened.options, "torch-export", Path("student.pt2"))
    assert [found.code for found in caught.value.diagnostics] == ["KD762"]
    assert not Path("student.pt2").exists()


def test_bad_arguments(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="onxx"):
        exported(run, "onxx")
    with pytest.raises(
        UsageError, match=r"`student\.safetensors` is the name of a safetensors file"
    ) as wrong:
        exported(run, "onnx", Path("student.safetensors"))
    assert wrong.value.diagnostics[0].help == "say `--format safetensors`, or give the file another ending"
    assert not Path("student.safetensors").exists()
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(RunError) as caught:
        exported(run, "onnx")
    assert caught.value.diagnostics[0].code == "KD760"
    (run / "student.safetensors").unlink()
    (run / "student_best.safetensors").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(RunError) as caught:
        exported(run, "safetensors")
    assert caught.value.diagnostics[0].code == "KD719"


@pytest.mark.parametrize("format", ["safetensors", "torch-export"])
def test_a_student_with_another_end_is_exported_with_it(format: str) -> None:
    """SimKD: the teacher's classifier goes along."""
    parsed = spec_with(mimic_of("simkd", TEACHER), "trainer.max_iter=2", "trainer.test_freq=1")
    train_all(parsed)
    done = exported(Path("runs/small"), format)
    assert done.proof.difference < 1e-5


def test_an_overwritten_run_keeps_no_export_and_every_other_file(run: Path) -> None:
    exported(run, "safetensors")
    exported(run, "safetensors", run / "other.safetensors")
    exported(run, "safetensors", Path("elsewhere.safetensors"))
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events.out.tfevents.1").write_bytes(b"former")
    mine = [run / name for name in ("mine.onnx", "run.onnx", "notes.txt", "tensorboard/mine.txt")]
    for path in [*mine, Path("outside.onnx")]:
        path.write_text("mine")
    said = json.loads((run / "exports.json").read_text())
    assert said == ["other.safetensors", "run.safetensors"]
    (run / "exports.json").write_text(json.dumps([*said, "../outside.onnx", "..", "tensorboard", 3]))
    train_all(spec_of(SPEC, *CHANGES), overwrite=True)
    left = {path.name for path in run.iterdir()}
    assert not left & {"run.safetensors", "other.safetensors", "exports.json"}
    assert all(path.read_text() == "mine" for path in [*mine, Path("outside.onnx")])
    assert Path("elsewhere.safetensors").exists() and "student.safetensors" in left
    assert [path.name for path in (run / "tensorboard").iterdir()] == ["mine.txt"]


def test_without_the_data_made_up_images_do(run: Path) -> None:
    opened = reopen(run)
    spec = opened.parsed.spec
    kwargs = spec.dataset.test.dataset.model_copy(update={"type": "image_folder"})
    part = spec.dataset.test.model_copy(update={"dataset": kwargs})
    missing = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"test": part})})
    done = export(replace(opened.parsed, spec=missing), opened.options, "safetensors")
    assert not done.real and done.proof.difference == 0.0


def relative(expected: Tensor, found: Tensor, tolerance: float = 1e-4) -> Any:
    class Fixed(Classifier):
        def eager(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return (expected[: len(inputs[0])],)

    student = Fixed(Network({"model": nn.Flatten()}))
    return prove(student, lambda image: (found[: len(image)],), (torch.zeros(2, 1, 2, 2),), tolerance)


def test_the_proof_is_relative_to_the_largest_output() -> None:
    # Logits in the thousands, of which one is small: float32 can't do better than 1e-7 of the sum.
    huge = torch.tensor([[3e5, 0.5, -2e5], [1e5, 1.0, 2.0]])
    proof = relative(huge, huge + torch.tensor([0.0, 0.3, 0.0]))
    assert proof.difference == pytest.approx(0.3) and proof.share == pytest.approx(0.3 / 3e5)
    with pytest.raises(RunError, match=r"0\.00013 of the largest value"):
        relative(huge, huge + torch.tensor([0.0, 40.0, 0.0]))
    small = torch.tensor([[0.05, -0.02], [0.01, 0.03]])
    with pytest.raises(RunError, match="answers otherwise"):
        relative(small, small + 2e-5)  # 2e-5 of 0.05 is 4e-4: beyond the tolerance, though small itself
    tiny = torch.full((2, 2), 1e-6)
    assert relative(tiny, tiny + 5e-7).difference < 1e-6  # rounding of values of about 1
    with pytest.raises(RunError, match="not finite"):
        relative(torch.full((2, 2), float("inf")), torch.zeros(2, 2))


@pytest.mark.parametrize("mask", [None, "float", "bool"])
@pytest.mark.parametrize(
    ("causal", "scale", "grouped"), [(False, None, False), (True, 0.3, False), (False, None, True)]
)
def test_plain_attention_is_torchs(
    mask: str | None, causal: bool, scale: float | None, grouped: bool
) -> None:
    if causal and mask:
        return
    draws = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=draws)
    key, value = (torch.randn(2, 2 if grouped else 4, 7, 8, generator=draws) for _ in range(2))
    given = {
        None: None,
        "float": torch.randn(5, 7, generator=draws),
        "bool": torch.rand(5, 7, generator=draws) > 0.3,
    }[mask]
    more = {"is_causal": causal, "scale": scale, "enable_gqa": grouped}
    with PlainAttention():
        found = nn.functional.scaled_dot_product_attention(query, key, value, given, **more)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, given, **more)
    assert torch.allclose(found, expected, atol=1e-6)


class Windows(nn.Module):
    """Attention over five axes, as Hiera's, then a `view` of what it returns, as BEiT's and MaxViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.fc = nn.Linear(4, 24), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.reshape(-1, 4, 16).transpose(1, 2)
        query, key, value = self.qkv(tokens).reshape(-1, 2, 8, 3, 2, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.fc(mixed.transpose(2, 3).reshape(-1, 16, 8).mean(1))


@pytest.mark.slow
def test_attention_blocks_have_an_onnx_file(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    student = Classifier(Network({"model": Windows()}))
    example = (torch.rand(2, 1, 8, 8),)
    Onnx().write(student, example, tmp_path / "a.onnx", {})
    answer = Onnx().read(tmp_path / "a.onnx", student)
    assert runtime and prove(student, answer, (torch.rand(5, 1, 8, 8),), 1e-4).difference < 1e-5


def test_what_an_exporter_raises_is_told_by_its_first_cause() -> None:
    try:
        try:
            raise ValueError("Cannot view a tensor\nmore")
        except ValueError as cause:
            raise RuntimeError(
                'pages\n  File "/home/me/mynets.py", line 12, in forward\n    x.view(1)'
            ) from cause
    except RuntimeError as error:
        (found,) = not_exported(error, "onnx").diagnostics
    assert (
        "ValueError: Cannot view a tensor (at /home/me/mynets.py:12)" in found.message
        and "more" not in found.message
    )


LOADED = (
    ("torchvision.shufflenet_v2_x0_5", {"num_classes": 4, "weights": None}),
    ("cifar_resnet8", {"num_classes": 4, "in_channels": 1, "widths": [2, 2, 4, 4]}),
    pytest.param("timm.resnet10t", {"num_classes": 4, "pretrained": False}, marks=pytest.mark.slow),
    pytest.param("torchvision.ssdlite320_mobilenet_v3_large", {"num_classes": 4}, marks=pytest.mark.slow),
)


@pytest.mark.parametrize(("kind", "kwargs"), LOADED)
def test_the_printed_lines_load_the_file(kind: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    if kind.startswith("timm."):
        pytest.importorskip("timm")
    spec = ModuleSpec(name="model", type=kind, kwargs=kwargs)
    net = build_network([spec], path=("net",))
    path = tmp_path / "w.safetensors"
    save_safetensors(net.exported_state(), path)
    lines = loading_lines([spec], net, path, net.exported_state())
    assert len(lines) == 3
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    loaded = names["net"].state_dict()
    assert loaded.keys() == net.exported_state().keys()
    assert all(torch.equal(value, loaded[name]) for name, value in net.exported_state().items())


def test_a_list_of_modules_has_no_such_lines() -> None:
    backbone = ModuleSpec(
        name="backbone", type="resnet_custom", kwargs={"block": "basic", "layers": [1] * 4, "width": 4}
    )
    head = ModuleSpec(name="head", type="base_cls_head", kwargs={"num_classes": 2})
    net = build_network([backbone, head], path=("net",))
    assert loading_lines([backbone, head], net, Path("w"), net.exported_state()) == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("dataset.test.dataset.kwargs.transformer=[{type: normalize, kwargs: {mean: [9], std: [2]}}]", True),
        ("net.model.kwargs.widths=[2, 2, 4, 8]", True),
        ("trainer.log_freq=3", False),
    ],
)
def test_a_spec_that_builds_or_feeds_the_student_otherwise_than_its_run_is_told(
    run: Path, change: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("cfg.yaml").write_text(SPEC)
    run_or_spec(EvalOptions(spec="cfg.yaml", changes=(*CHANGES, change)))
    run_or_spec(EvalOptions(spec="cfg.yaml", changes=(*CHANGES, change), weights=Path("student.safetensors")))
    said = capsys.readouterr().err
    assert said.count("is not what run was trained with: `") == told
    assert not told or change.partition("=")[0].removeprefix("net.model") in said
