"""User code rehearsed on fake CUDA tensors: what mixes devices or waits is told, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdcli import failures
from kdcli.check import check as checks
from kdcli.check import on_cuda
from kdcli.check.check import CheckOptions, check
from kdcli.spec.parse import read
from kdcli.spec.plugins import import_plugins
from tests.check.check_cases import CIFAR
from tests.training.runs import SPEC, spec_of

SAMPLES = Path(__file__).parents[2] / "sample_configs"
HEAD = "import torch\nfrom torch import nn\n\n\ndef loss(student, teacher, *, loss_weight: float = 1.0):\n"
PLAIN = "    return (student - teacher).square().mean()\n"

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)
        self.plain, self.kept = torch.ones(8), None
        self.register_buffer("buffer", torch.ones(8))

    def forward(self, image):
        x = self.conv(image).relu().mean((2, 3))
        {line}
        return self.fc(x)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a package for this test alone."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"on_cuda_{abs(hash(request.node.nodeid))}"
    monkeypatch.setattr(failures, "PLUGINS", {*failures.PLUGINS, name})
    return name


def told(plugin: str, text: str, *changes: str, spec: str = SPEC) -> list[tuple[str, str]]:
    """Codes of the rehearsal on a GPU, and the message."""
    Path(f"{plugin}.py").write_text(text)
    parsed = spec_of(spec, *changes)
    import_plugins(parsed.spec, (plugin,))
    found = check(parsed, CheckOptions(plugins=(plugin,), on_cuda=True)).findings
    return [(one.code, one.message) for one in found if one.code in ("KD296", "KD297", "KD437", "KD418")]


def of_loss(plugin: str, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.chdir(tmp_path)
    return told(plugin, HEAD + body, f"mimic.cfgs.loss={{type: '{plugin}:loss'}}")


LOSSES = {
    "a tensor on the CPU": ("KD296", "    student = student * torch.ones(student.shape[1])\n", "`mul`", 1),
    "a CPU number in a stack": (
        "KD296",
        "    student = student * torch.stack([student.sum(), torch.tensor(1.0)])[0]\n",
        "`stack`",
        1,
    ),
    "an array": ("KD296", "    student = student * float(teacher.detach().numpy().std())\n", "NumPy", 1),
    "item": ("KD297", "    student = student / teacher.std().item()\n", ".item()", 1),
    "float": ("KD297", "    student = student / float(teacher.std())\n", ".item()", 1),
    "if": ("KD297", "    if teacher.max() > 3:\n        student = student * 2\n", "`if`", 1),
    "tolist": ("KD297", "    student = student / (1 + max(teacher[0].tolist()))\n", ".item()", 1),
    "a mask": ("KD297", "    student, teacher = student[teacher > 0], teacher[teacher > 0]\n", "mask", 1),
    "nonzero": ("KD297", "    student = student * len(teacher.nonzero())\n", "nonzero", 1),
    "unique": ("KD297", "    student = student * len(teacher.unique())\n", "unique", 1),
    "a copy to the CPU": ("KD297", "    teacher = teacher.cpu().to(student.device)\n", "copy to the CPU", 1),
    "a copy from the CPU": (
        "KD297",
        "    student = student * torch.tensor(2.0, device=student.device)\n",
        "copy from the CPU",
        1,
    ),
    "a list as index": ("KD297", "    student, teacher = student[:, [0, 1]], teacher[:, [0, 1]]\n", "list", 1),
    "a number at indices": (
        "KD297",
        "    hot = torch.zeros_like(student)\n"
        "    hot[torch.arange(len(hot), device=hot.device), teacher.argmax(1)] = 1.0\n"
        "    student = student * hot\n",
        "x[indices] = 1.0",
        2,
    ),
    "a mix after a number on both ways": (
        "KD296",
        "    if teacher.max() > 3:\n"
        "        student = student * 2\n"
        "    student = student * torch.ones(student.shape[1])\n",
        "`mul`",
        3,
    ),
}  # fmt: skip


FINE = {
    "plain": "",
    "a CPU number": "    student = student * torch.tensor(2.0)\n",
    "made where the inputs are": "    student = student * torch.ones(student.shape[1], device=student.device)\n",
    "where": "    student = torch.where(teacher > 0, student, teacher)\n",
    "a copy that is not waited for": "    w = torch.ones(student.shape[1]).to(student.device, non_blocking=True)\n",
    "shapes": "    student = student * (2.0 if student.numel() > 3 else 1.0)\n",
    "a number at a mask or a slice": (
        "    hot = torch.zeros_like(student)\n"
        "    hot[teacher > 0] = 1.0\n"
        "    hot[:, 0] = 2.0\n"
        "    student = student * hot\n"
    ),
    "a tensor at indices": (
        "    hot, rows = torch.zeros_like(student), torch.arange(len(student), device=student.device)\n"
        "    hot = hot.index_put((rows, teacher.argmax(1)), hot.new_ones(()))\n"
        "    student = student * hot\n"
    ),
    "a slice and indices": "    student = student[torch.arange(len(student), device=student.device)][:, :]\n",
}


def test_losses_are_told_one_by_one(plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of one job: each fault is one finding with its line, and a loss without one has none."""
    monkeypatch.chdir(tmp_path)
    bodies = {**{name: body for name, (_, body, *_) in LOSSES.items()}, **FINE}
    text, lines = "import torch\n", {}
    for number, (name, body) in enumerate(bodies.items()):
        text += f"def loss{number}(student, teacher, *, loss_weight: float = 1.0):\n{body}{PLAIN}"
        lines[name] = text.count("\n") - (body + PLAIN).count("\n")
    cfgs = ", ".join(f"loss{number}: {{type: '{plugin}:loss{number}'}}" for number in range(len(bodies)))
    found = told(plugin, text, f"mimic.cfgs={{{cfgs}}}")
    for number, name in enumerate(bodies):
        mine = [
            (code, message) for code, message in found if f"the loss `mimic_job0.loss{number}`" in message
        ]
        if name in FINE:
            assert mine == [], name
            continue
        code, _, words, line = LOSSES[name]
        ((told_code, message),) = mine
        assert told_code == code and words in message, name
        assert f"{plugin}.py:{lines[name] + line}, in loss{number}" in message, name
    assert len(found) == len(LOSSES)


def test_a_mix_that_one_answer_alone_leads_to_is_not_told(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is made up: on real values the code may never go there."""
    body = "    if teacher.isnan().any():\n        student = student * torch.ones(student.shape[1])\n"
    assert [code for code, _ in of_loss(plugin, body + PLAIN, tmp_path, monkeypatch)] == ["KD297"]


def test_what_fake_tensors_can_not_follow_is_silent(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A custom operation without fake results, as extensions in C++ have it."""
    body = (
        "    if not hasattr(torch.ops, NAME) or not hasattr(getattr(torch.ops, NAME), 'twice'):\n"
        "        lib = torch.library.Library(NAME, 'DEF')\n"
        "        lib.define('twice(Tensor x) -> Tensor')\n"
        "        lib.impl('twice', lambda x: x * 2, 'CPU')\n"
        "        KEPT.append(lib)\n"
        "    student = getattr(torch.ops, NAME).twice(student.detach()) + student\n"
    )
    monkeypatch.chdir(tmp_path)
    text = HEAD.replace("import torch\n", f"import torch\nNAME, KEPT = '{plugin}', []\n", 1) + body + PLAIN
    assert told(plugin, text, f"mimic.cfgs.loss={{type: '{plugin}:loss'}}") == []


NETS = {
    "x = x * self.buffer": None,
    "self.kept = x if self.kept is None else self.kept; x = x + self.kept.mean()": None,
    "x = x * self.plain": "KD296",
    "x = x + torch.arange(8.0)": "KD296",
    "x = x / x.max().item()": "KD297",
    "assert not x.isnan().any()": "KD297",
}


@pytest.mark.parametrize("line", NETS)
@pytest.mark.parametrize("name", ["net", pytest.param("teacher0", marks=pytest.mark.slow)])
def test_a_network_is_told_by_its_module(
    line: str, name: str, plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = (
        f"{name}=[{{name: model, type: '{plugin}:Net'}}]",
        "mimic.student.mimic_name=[logits]",
        "mimic.teacher0.mimic_name=[logits]",
    )
    found = told(plugin, NET.replace("{line}", line), *changes)
    assert [code for code, _ in found] == [code for code in [NETS[line]] if code]
    whose = "the student" if name == "net" else "`teacher0`"
    assert all(f"`model` of {whose}" in text and f"{plugin}.py:15, in forward" in text for _, text in found)


def test_a_module_that_moves_itself_is_not_judged(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = NET.replace("{line}", "x = x * self.plain") + (
        "    def _apply(self, fn, recurse=True):\n"
        "        self.plain = fn(self.plain)\n"
        "        return super()._apply(fn, recurse)\n"
    )
    changes = (f"net=[{{name: model, type: '{plugin}:Net'}}]", "mimic.student.mimic_name=[logits]")
    assert told(plugin, text, *changes, "mimic.teacher0.mimic_name=[logits]") == []


def test_only_user_code_is_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "on_cuda", None)
    check(spec_of(SPEC), CheckOptions(on_cuda=True))


@pytest.fixture
def everyone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every line but torch's counts as the user's; gives the rehearsals that came to their end."""

    def line(frame: Any, within: Any) -> str | None:
        while frame is not None and frame.f_code is not within:
            file = frame.f_code.co_filename
            if "/torch/" not in file and not file.endswith(("check/on_cuda.py", "contextlib.py")):
                return f"{file}:{frame.f_lineno}"
            frame = frame.f_back
        return None

    ended: list[Any] = []
    watched = on_cuda.losses_watched

    def counted(*args: Any) -> None:
        watched(*args)
        ended.append(args)

    monkeypatch.setattr(on_cuda, "running_line", line)
    monkeypatch.setattr(on_cuda, "losses_watched", counted)
    monkeypatch.setattr(checks, "may_need_cuda", lambda _: True)
    yield ended


def finds_of(parsed: Any) -> list[str]:
    found = check(parsed, CheckOptions(on_cuda=True, places=parsed.places)).findings
    return [one.message for one in found if one.code in ("KD296", "KD297")]


def test_kdcli_has_no_finding_of_its_own(everyone: list[Any]) -> None:
    assert finds_of(spec_of(SPEC)) == [] and everyone


WITH_DATA = [file.name for file in sorted(SAMPLES.glob("*.yaml")) if "dataset" in file.read_text()]


@pytest.mark.long
@pytest.mark.parametrize("name", WITH_DATA)
def test_no_sample_has_a_finding(name: str, everyone: list[Any]) -> None:
    parsed = read(str(SAMPLES / name), ())
    found = finds_of(parsed)
    if "kd_det" in (SAMPLES / name).read_text() or "boxes" in str(found):
        found = [one for one in found if "mixes" in one]
    assert found == []


NETWORKS = [
    *(f"torchvision.{name}" for name in "resnet18 mobilenet_v3_small efficientnet_b0 densenet121 swin_t".split()),
    *("torchvision.vit_b_32", "torchvision.convnext_tiny", "torchvision.shufflenet_v2_x0_5"),
    *(
        f"timm.{name}"
        for name in "resnet18d mobilenetv3_small_100 tf_efficientnet_lite0 repvit_m0_9 efficientvit_b0 convnextv2_atto"
        " regnety_002 mobilevitv2_050 fastvit_t8 ghostnet_100 hgnetv2_b0 vit_tiny_patch16_224"
        " deit3_small_patch16_224 swin_tiny_patch4_window7_224 xcit_nano_12_p16_224"
        " coatnet_nano_rw_224 davit_tiny poolformer_s12".split()
    ),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_has_a_finding(name: str, everyone: list[Any]) -> None:
    resized = "[{type: torch_resize, kwargs: {size: [224, 224]}}, {type: to_tensor}]"
    changes = (
        f"net={{name: model, type: {name}, kwargs: {{num_classes: 10}}}}",
        "mimic.student.mimic_name=[logits]",
        "mimic.teacher0={mimic_name: [logits], allow_random: true, allow_weak_teacher: true}",
        "mimic.cfgs.loss={type: kd_loss, kwargs: {T: 4}}",
        *(f"dataset.{side}.dataset.kwargs.transformer={resized}" for side in ("train", "test")),
    )
    assert finds_of(spec_of(CIFAR, *changes)) == [] and everyone
