"""The forms in which training scripts of the field save weights: each is read, or refused with the right reason."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdcli.errors import RunError, SpecError
from kdcli.models.network import Network
from kdcli.models.weights import check_weights, load_weights, read_weights

from .fakes import network

SMALL = {"block": "basic", "layers": [1, 1, 1, 1], "width": 4}


def listed(classes: int = 3) -> Network:
    """A list of two modules, as United-Perception's specs have them."""
    head = {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": classes}}
    return network({"name": "backbone", "type": "resnet_custom", "kwargs": SMALL}, head)


def whole() -> Network:
    """One whole model."""
    return network(
        {"name": "classifier", "type": "cifar_resnet8", "kwargs": {"num_classes": 3, "widths": [2, 2, 4, 4]}}
    )


def bare(net: Network) -> dict[str, Tensor]:
    """The state dict of a list under torchvision's, timm's and HF's names, of a whole model under its own."""
    state = net.state_dict()
    if "backbone.layer0.0.weight" not in state:
        return {key.split(".", 1)[1]: value for key, value in state.items()}
    stem = {"layer0.0.": "conv1.", "layer0.1.": "bn1."}
    names = {}
    for key in state:
        name = key.removeprefix("backbone.").replace("head.classifier.", "fc.")
        names[key] = next(
            (new + name.removeprefix(old) for old, new in stem.items() if name.startswith(old)), name
        )
    return {names[key]: value for key, value in state.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def zeros(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Live weights that must not be taken before the average."""
    return {key: torch.zeros_like(value) for key, value in state.items()}


def parameters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: v for key, v in state.items() if "running" not in key and "num_batches" not in key}


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"n_averaged": torch.tensor(7), **under("module.", state)}


ARGS = argparse.Namespace(
    lr=0.1, output_dir=Path("out"), model="resnet18", betas=(0.9, 0.999), inner=argparse.Namespace()
)
CRITERION = {"criterion.weight": torch.ones(3)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}

FORMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "bare": (lambda s: s, ()),
    "HF pytorch_model.bin of timm": (lambda s: s, ()),
    "PyTorch's tutorial": (
        lambda s: {
            "epoch": 5, "model_state_dict": s, "optimizer_state_dict": OPTIMIZER, "loss": torch.tensor(0.4),
        },
        (),
    ),
    "pytorch-cifar": (lambda s: {"net": under("module.", s), "acc": 93.1, "epoch": 7}, ("`module.` is taken off",)),
    "torchvision's references": (
        lambda s: {"model": s, "optimizer": OPTIMIZER, "lr_scheduler": {}, "epoch": 1, "args": ARGS, "scaler": {}},
        (),
    ),
    "torchvision's references with EMA": (
        lambda s: {"model": zeros(s), "model_ema": averaged(s), "optimizer": OPTIMIZER, "args": ARGS},
        ("`model_ema` is taken before `model`", "`module.` is taken off"),
    ),
    "timm": (
        lambda s: {"epoch": 3, "arch": "resnet18", "state_dict": s, "optimizer": OPTIMIZER, "version": 2, "args": ARGS},
        (),
    ),
    "timm with EMA": (
        lambda s: {"state_dict": zeros(s), "state_dict_ema": s, "args": ARGS, "metric": 71.2},
        ("`state_dict_ema` is taken before `state_dict`",),
    ),
    "DeiT": (
        lambda s: {"model": zeros(s), "model_ema": s, "optimizer": OPTIMIZER, "epoch": 2, "args": ARGS},
        ("`model_ema` is taken before `model`",),
    ),
    "BasicSR": (lambda s: {"params": zeros(s), "params_ema": s}, ("`params_ema` is taken before `params`",)),
    "weights": (lambda s: {"weights": s, "config": {"depth": 18}}, ()),
    "AveragedModel": (averaged, ("`module.` is taken off the names of its tensors",)),
    "Lightning": (
        lambda s: {
            "state_dict": {**under("net.", s), **CRITERION}, "pytorch-lightning_version": "2.1",
            "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "loops": {"fit_loop": {"state_dict": {}}},
        },
        ("`net.` is taken off", "1 other is not used: criterion.weight"),
    ),
    "Lightning, self.model": (
        lambda s: {"state_dict": {**under("model.", s), **CRITERION}},
        ("`model.` is taken off", "criterion.weight"),
    ),
    "a distiller": (
        lambda s: {"model": {**under("module.student.", s), "module.adapter.weight": torch.ones(1)}},
        ("`module.student.` is taken off", "module.adapter.weight"),
    ),
    "DDP and compile": (
        lambda s: under("module._orig_mod.", s), ("`_orig_mod.` is taken off", "`module.` is taken off"),
    ),
    "Lightning and compile": (
        lambda s: {"state_dict": under("model._orig_mod.", s)}, ("`_orig_mod.` is taken off", "`model.` is taken off"),
    ),
    "FSDP": (lambda s: {"model": under("_fsdp_wrapped_module.", s)}, ("`_fsdp_wrapped_module.` is taken off",)),
    "activation checkpoints": (
        lambda s: {k.replace("layer1.", "layer1._checkpoint_wrapped_module."): v for k, v in s.items()},
        ("`_checkpoint_wrapped_module.` is taken off",),
    ),
    "a shadow of the parameters": (
        lambda s: {"model": {k: v if k not in parameters(s) else torch.zeros_like(v) for k, v in s.items()},
                   "ema": {"decay": 0.999, "shadow": parameters(s)}},
        ("`ema.shadow` is taken before `model`", "tensors come from `model`"),
    ),
    "a backbone of another name": (lambda s: {"state_dict": under("encoder.", s)}, ("`encoder.` is taken off",)),
    "an average that does not fit": (
        lambda s: {"model": s, "ema": {"decay": torch.tensor(0.9)}},
        ("`ema` does not fit the network, `model` is taken",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", [listed, whole])
@pytest.mark.parametrize("form", FORMS)
def test_usual_forms_are_read(form: str, make: Any, tmp_path: Path) -> None:
    source, net = make(), make()
    save, said = FORMS[form]
    torch.save(save(bare(source)), tmp_path / "w.pt")
    checked = check_weights(net, tmp_path / "w.pt")
    notices = load_weights(net, tmp_path / "w.pt")
    assert checked == notices
    state = net.state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(state[key], value), key
    assert bool(notices) == bool(said)
    for part in said:
        assert part in notices[0]
    assert len(notices) <= 1


@pytest.mark.parametrize("prefix", ["", "module."])
def test_united_perceptions_own_checkpoints_are_read(prefix: str, tmp_path: Path) -> None:
    source, net = listed(), listed()
    state = under(prefix, source.state_dict())
    plain = {
        "epoch": 9, "iter": 900, "metric_val": 0.7, "model": state, "optimizer": OPTIMIZER,
        "lr_scheduler": {"last_iter": 900, "base_lrs": [0.1]},
    }  # fmt: skip
    for saved in (plain, {**plain, "model": zeros(state), "ema": {"ema_state_dict": state, "decay": 0.999}}):
        torch.save(saved, tmp_path / "ckpt_e9.pth")
        (*notice,) = load_weights(net, tmp_path / "ckpt_e9.pth")
        assert all(torch.equal(net.state_dict()[k], v) for k, v in source.state_dict().items())
        assert ("`module.` is taken off" in " ".join(notice)) == bool(prefix)
        assert ("`ema.ema_state_dict` is taken before `model`" in " ".join(notice)) == ("ema" in saved)


def test_mmcls_heads_are_read(tmp_path: Path) -> None:
    source, net = listed(), listed()
    body = {k: v for k, v in bare(source).items() if not k.startswith("fc.")}
    head = {f"head.fc.{k.split('.')[-1]}": v for k, v in bare(source).items() if k.startswith("fc.")}
    torch.save({"meta": {"epoch": 3}, "state_dict": {**under("backbone.", body), **head}}, tmp_path / "w.pth")
    assert load_weights(net, tmp_path / "w.pth") == []
    assert torch.equal(net.head.classifier.weight, source.head.classifier.weight)


def test_a_list_of_two_modules_fits_a_whole_model(tmp_path: Path) -> None:
    resnet = {"name": "model", "type": "torchvision.resnet18", "kwargs": {"num_classes": 3}}
    one, other = network(resnet), network(resnet)
    state = bare(one)
    lists = [
        {f"backbone.{k}" if not k.startswith("fc") else f"head.{k}": v for k, v in state.items()},
        {
            f"backbone.{k.replace('conv1.', 'layer0.0.', 1) if k.startswith('conv1.') else k}".replace(
                "backbone.bn1.", "backbone.layer0.1."
            )
            if not k.startswith("fc")
            else k.replace("fc", "head.classifier"): v
            for k, v in state.items()
        },
    ]
    for parts in lists:
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        torch.save({"state_dict": parts}, tmp_path / "w.pt")
        (notice,) = load_weights(other, tmp_path / "w.pt")
        assert "`backbone.*` and `head.*` are read as one whole model's names" in notice
        assert all(torch.equal(other.state_dict()[k], v) for k, v in one.state_dict().items())


def test_a_real_averaged_model_is_read(tmp_path: Path) -> None:
    source, net = whole(), whole()
    torch.save(AveragedModel(source.classifier).state_dict(), tmp_path / "w.pt")
    load_weights(net, tmp_path / "w.pt")
    assert torch.equal(net.classifier.conv1.weight, source.classifier.conv1.weight)


@pytest.mark.parametrize("key", ["teacher", "nets.teacher", "teacher.module", "a.b"])
def test_a_weight_key_names_a_nested_state(key: str, tmp_path: Path) -> None:
    source, net = listed(), listed()
    state = source.state_dict()
    files: dict[str, Any] = {
        "teacher": {"student": zeros(state), "teacher": {"model": state}},
        "nets.teacher": {"nets": {"teacher": state, "student": zeros(state)}},
        "teacher.module": {"model": zeros(state), "teacher": under("module.", state)},
        "a.b": {"a.b": state, "a": {"c": zeros(state)}},
    }
    torch.save(files[key], tmp_path / "w.pt")
    assert (
        check_weights(net, tmp_path / "w.pt", key=key) == load_weights(net, tmp_path / "w.pt", key=key) == []
    )
    assert all(torch.equal(net.state_dict()[k], v) for k, v in state.items())
    with pytest.raises(RunError, match=r"KD547: .* has no tensors under `teachr`") as caught:
        load_weights(net, tmp_path / "w.pt", key="teachr")
    assert caught.value.diagnostics[0].help is not None


def test_a_weight_key_may_be_what_names_begin_with(tmp_path: Path) -> None:
    source, net = listed(), listed()
    both = {**under("encoder_k.", zeros(source.state_dict())), **under("encoder_q.", source.state_dict())}
    torch.save({"state_dict": both}, tmp_path / "w.pt")
    save_file(both, tmp_path / "w.safetensors")
    for name, key in (("w.pt", "state_dict.encoder_q"), ("w.safetensors", "encoder_q")):
        with pytest.raises(RunError, match=r"KD548: .*`encoder_k\.\*` and `encoder_q\.\*`"):
            load_weights(net, tmp_path / name)
        nn.init.zeros_(net.head.classifier.weight)
        assert load_weights(net, tmp_path / name, key=key) == []
        assert torch.equal(net.head.classifier.weight, source.head.classifier.weight)


def help_of(net: Network, saved: Any, folder: Path, code: str, **options: Any) -> tuple[str, str]:
    torch.save(saved, folder / "w.pt")
    said = []
    for use in (load_weights, check_weights):
        with pytest.raises(RunError, match=code) as caught:
            use(net, folder / "w.pt", **options)
        (found,) = caught.value.diagnostics
        said.append((found.message, str(found.help)))
    assert said[0] == said[1]
    return said[0]


def test_a_refusal_names_what_would_fit(tmp_path: Path) -> None:
    net = listed()
    state = listed().state_dict()
    message, help = help_of(net, {"student": {"a": torch.ones(1)}, "teacher": state}, tmp_path, "KD532")
    assert "has its tensors under `student`, `teacher`, none of them a usual name" in message
    assert help.endswith("`--weight-key teacher`")
    where = ("mimic", "jobs", "mimic_job0", "teachers", "teacher0", "teacher_weight")
    with pytest.raises(SpecError) as caught:
        load_weights(net, tmp_path / "w.pt", where=where)
    (finding,) = caught.value.diagnostics
    assert finding.path == where and (finding.help or "").endswith("`weight_key: teacher`")
    with pytest.raises(SpecError) as caught:
        load_weights(net, tmp_path / "w.pt", where=where, key="none")
    assert caught.value.diagnostics[0].path == (*where[:-1], "weight_key")
    _, help = help_of(net, {"model": {"a": torch.ones(1)}, "nets": {"old": state}}, tmp_path, "KD531")
    assert help == "`nets.old` comes closest, all of the network's tensors fit: `--weight-key nets.old`"
    message, help = help_of(net, listed(7).state_dict(), tmp_path, "KD531")
    assert message.endswith("2 mis-shaped: head.classifier.weight [7, 32] instead of [3, 32], "
                            "head.classifier.bias [7] instead of [3]")  # fmt: skip
    assert help == "the file has 7 classes: a network of as many would fit"
    message, _ = help_of(net, {"model": under("module.", listed(7).state_dict())}, tmp_path, "KD531")
    assert "2 mis-shaped: head.classifier.weight" in message and "missing" not in message
    torn = {k: v for k, v in under("net.", state).items() if "layer4" not in k}
    message, help = help_of(net, torn, tmp_path, "KD531")
    assert "missing: backbone.layer4.0" in message and "unexpected" not in message
    assert "without `net.`" in help


def test_pretraining_takes_prefixes_off_too(tmp_path: Path) -> None:
    source, net = listed(5), listed(3)
    torch.save({"state_dict": {**under("net.", source.state_dict()), **CRITERION}}, tmp_path / "w.pt")
    notices = load_weights(net, tmp_path / "w.pt", mode="pretrain")
    assert torch.equal(net.backbone.layer4[0].conv2.weight, source.backbone.layer4[0].conv2.weight)
    assert "`net.` is taken off" in notices[0] and "head.classifier.weight" in notices[1]


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_nothing_of_a_namespace_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = listed().state_dict()
    for args in (argparse.Namespace(run=Runs()), argparse.Namespace(inner={"x": [Runs()]}), Runs()):
        for zipped in (True, False):
            torch.save({"model": state, "args": args}, "w.pt", _use_new_zipfile_serialization=zipped)
            for use in (load_weights, check_weights):
                with pytest.raises(RunError, match=r"KD536: .*mkdir"):
                    use(listed(), "w.pt")
    assert not Path("exploded").exists()


def test_a_namespace_that_is_called_or_given_methods_runs_nothing(tmp_path: Path) -> None:
    class Called:
        def __init__(self, method: Any) -> None:
            self.method = method

        def __reduce__(self) -> Any:
            return argparse.Namespace, (), {"__setstate__": self.method, "__class__": "x", "lr": 1}

    torch.save({"model": listed().state_dict(), "args": Called("eval")}, tmp_path / "w.pt")
    assert set(read_weights(tmp_path / "w.pt")) == set(listed().state_dict())
    torch.save({"model": listed().state_dict(), "args": Called(eval)}, tmp_path / "w.pt")
    with pytest.raises(RunError, match=r"KD536: .*eval"):
        read_weights(tmp_path / "w.pt")


def test_a_program_is_refused_with_the_line_that_makes_weights_of_it(tmp_path: Path) -> None:
    source = whole()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 3))), tmp_path / "scripted.pt")
        for use in (read_weights, lambda path: check_weights(source, path)):
            with pytest.raises(RunError, match=r"KD546: .* is a TorchScript archive") as caught:
                use(tmp_path / "scripted.pt")
        help = str(caught.value.diagnostics[0].help)
        line = help.split("`")[1].replace("'weights.pt'", repr(str(tmp_path / "weights.pt")))
        exec(line, {"torch": torch})
    assert {k: tuple(v.shape) for k, v in read_weights(tmp_path / "weights.pt").items()} == {
        "0.weight": (3, 2), "0.bias": (3,),
    }  # fmt: skip
