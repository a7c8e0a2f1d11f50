"""What a run sets on its device: a function of facts, so that GPUs are decided about without one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from kdcli.models.network import build_network
from kdcli.parallel.settings import (
    CUBLAS,
    DeviceFacts,
    Settings,
    compile_mode,
    compiled_networks,
    decide,
    facts_of,
    has_convolutions,
    using,
)
from kdcli.spec.schema import ModuleSpec, Runtime
from tests.parallel.pretend_cuda import CUDA, pretend_cuda

CPU = DeviceFacts(kind="cpu")
PASCAL, VOLTA, AMPERE = (
    DeviceFacts(kind="cuda", name=name, capability=capability)
    for name, capability in (("P100", (6, 0)), ("V100", (7, 0)), ("A100", (8, 0)))
)
CLASSIFIER: dict[str, Any] = {"one_size": True, "convolutions": True, "bytes_first": True}


def runtime(**keys: Any) -> Runtime:
    return Runtime.model_validate(keys)


def test_the_cpu_gets_no_default() -> None:
    settings = decide(runtime(), CPU, **CLASSIFIER)
    assert settings == Settings(precision="fp32", teacher_precision="fp32")
    assert settings.notices(CPU) == []


def test_a_gpu_gets_what_keeps_the_arithmetic_of_fp32_and_one_hint() -> None:
    settings = decide(runtime(), AMPERE, **CLASSIFIER)
    assert settings.channels_last and settings.cudnn_benchmark and settings.uint8_images
    assert (settings.precision, settings.teacher_precision, settings.tf32) == ("fp32", "fp32", None)
    line, hint = settings.notices(AMPERE)
    assert line == (
        "on A100: by default `channels_last`, `cudnn_benchmark`, `uint8_images`"
        " (`runtime.<key>: false` switches one off)"
    )
    assert "`runtime.precision: auto`" in hint and "`runtime.tf32: true`" in hint


@pytest.mark.parametrize("key", ["channels_last", "cudnn_benchmark", "uint8_images"])
def test_each_default_is_switched_off_by_its_key(key: str) -> None:
    settings = decide(runtime(**{key: False}), AMPERE, **CLASSIFIER)
    on = {name for name in ("channels_last", "cudnn_benchmark", "uint8_images") if getattr(settings, name)}
    assert on == {"channels_last", "cudnn_benchmark", "uint8_images"} - {key}
    assert f"`{key}`" not in settings.notices(AMPERE)[0]


def test_what_a_network_or_its_images_have_not_is_left_alone() -> None:
    """A transformer has no convolution to lay out, a detector no constant size."""
    assert decide(runtime(), AMPERE, one_size=True) == decide(runtime(), AMPERE)
    sizes = decide(runtime(), AMPERE, convolutions=True)
    assert sizes.channels_last and not sizes.cudnn_benchmark and not sizes.uint8_images
    assert not decide(runtime(uint8_images=True), AMPERE).uint8_images


@pytest.mark.parametrize(
    ("keys", "hinted"),
    [
        ({}, True),
        ({"precision": "fp32"}, False),
        ({"precision": "auto"}, False),
        ({"fp16": False}, False),
        ({"tf32": False}, False),
        ({"random_seed": 3}, True),
    ],
)
def test_who_has_said_what_he_wants_gets_no_hint(keys: dict[str, Any], hinted: bool) -> None:
    assert (decide(runtime(**keys), AMPERE).hint is not None) is hinted
    assert decide(runtime(**keys), VOLTA).hint is None


@pytest.mark.parametrize(
    ("facts", "precision"), [(CPU, "fp32"), (PASCAL, "fp32"), (VOLTA, "fp16"), (AMPERE, "bf16")]
)
def test_auto_is_what_the_device_has(facts: DeviceFacts, precision: str) -> None:
    settings = decide(runtime(precision="auto"), facts)
    assert (settings.precision, settings.teacher_precision) == (precision, precision)
    assert any(f"precision {precision}" in line for line in settings.notices(facts)) is facts.on_cuda


def test_what_is_written_stays() -> None:
    for keys, precision in (
        ({"precision": "fp32"}, "fp32"),
        ({"fp16": False}, "fp32"),
        ({"fp16": True}, "fp16"),
    ):
        assert decide(runtime(**keys), AMPERE).precision == precision
    mixed = decide(runtime(precision="fp32", teacher_precision="auto"), AMPERE)
    assert (mixed.precision, mixed.teacher_precision) == ("fp32", "bf16")


def test_a_resumed_run_keeps_what_auto_was() -> None:
    begun = decide(runtime(precision="auto"), VOLTA)
    resumed = decide(runtime(precision="auto"), AMPERE, kept=begun.kept())
    assert (resumed.precision, resumed.teacher_precision) == ("fp16", "fp16")
    assert decide(runtime(precision="bf16"), AMPERE, kept=begun.kept()).precision == "bf16"


def test_deterministic_turns_the_benchmark_off_and_says_its_price() -> None:
    settings = decide(runtime(deterministic=True), AMPERE, **CLASSIFIER)
    assert settings.channels_last and not settings.cudnn_benchmark
    assert "slower" in settings.notices(AMPERE)[0]
    assert decide(runtime(deterministic=True), CPU).notices(CPU)[0].startswith("on the CPU: ")


def test_switches_are_set_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    backends: Any = torch.backends

    def switches() -> tuple[Any, ...]:
        return (
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
            torch.are_deterministic_algorithms_enabled(),
            os.environ.get(CUBLAS),
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.allow_tf32,
            backends.cuda.matmul.fp32_precision,
            backends.cudnn.conv.fp32_precision,
        )

    before = switches()
    with using(decide(runtime(deterministic=True, tf32=True), CPU)):
        assert switches() == (False, True, True, ":4096:8", True, True, "tf32", "tf32")
        assert torch.get_float32_matmul_precision() == "high"  # what libraries ask
    assert switches() == before
    with using(decide(runtime(tf32=False), AMPERE, **CLASSIFIER)):
        assert switches() == (True, *before[1:4], False, False, "ieee", "none")
    assert switches() == before


def test_facts_are_asked_of_the_device() -> None:
    assert facts_of(torch.device("cpu")) == CPU
    with pretend_cuda(capability=(7, 5)):
        facts = facts_of(CUDA)
    assert facts.on_cuda and facts.fp16 and not facts.bf16 and facts.name == "pretend"


def test_patches_of_a_transformer_are_no_convolutions() -> None:
    convolutional = build_network(
        [ModuleSpec(name="model", type="cifar_resnet8", kwargs={"num_classes": 2})], path=()
    )
    assert has_convolutions(convolutional)
    patches = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 16, stride=16), torch.nn.Linear(8, 8))
    assert not has_convolutions(patches)


@pytest.mark.parametrize(
    ("said", "networks", "mode"),
    [
        (False, False, "default"),
        (True, True, "default"),
        ("teachers", "teachers", "default"),
        ({"mode": "max-autotune"}, True, "max-autotune"),
        ({"networks": "student", "mode": "reduce-overhead"}, "student", "reduce-overhead"),
    ],
)
def test_compile_takes_networks_and_a_mode(said: Any, networks: bool | str, mode: str) -> None:
    made = runtime(compile=said)
    assert (compiled_networks(made), compile_mode(made)) == (networks, mode)
