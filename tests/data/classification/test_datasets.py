"""The datasets by name, and what the spec alone tells of them."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.data.classification.arrays import digits, fashion_mnist, read_idx
from kdcli.data.facts import describe
from kdcli.errors import KdError, RunError, SpecError
from kdcli.spec.places import Places
from tests.data.conftest import look_at

NORMALIZE = {"type": "normalize", "kwargs": {"mean": [0.3], "std": [0.4]}}
TRAIN = ("dataset", "train")


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fashion(place: Path, samples: int = 20, *, zipped: bool = True) -> Path:
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (samples, 28, 28), dtype=np.uint8)),
            ("labels-idx1", (np.arange(samples) % 10).astype(np.uint8)),
        ):
            name = f"{prefix}-{kind}-ubyte"
            if zipped:
                (place / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (place / name).write_bytes(idx(array))
    return place


# digits


@pytest.mark.slow
def test_digits_are_scikit_learns_in_a_stratified_split(part: Any, loader: Any) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    everything = datasets.load_digits()
    parts = {
        split: loader(part("digits", split=split, batch_size=2000), train=False)
        for split in ("train", "test")
    }
    batches = {split: next(made.batches(0)) for split, made in parts.items()}
    assert [len(batches[s]["labels"]) for s in ("train", "test")] == [1347, 450]
    pixels = np.concatenate([b["image"].flatten(1).numpy() for b in batches.values()])
    labels = np.concatenate([b["labels"].numpy() for b in batches.values()])
    rows = {(*np.rint(row * 16).astype(int), label) for row, label in zip(pixels, labels, strict=True)}
    assert rows == {(*row.astype(int), y) for row, y in zip(everything.data, everything.target, strict=True)}
    whole = np.bincount(everything.target)
    assert np.abs(np.bincount(batches["test"]["labels"]) - whole * 450 / 1797).max() <= 1


def test_digits_do_not_wait_for_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    def called() -> None:
        raise AssertionError("importing scikit-learn takes longer than training on its digits")

    monkeypatch.setattr("sklearn.datasets.load_digits", called)
    assert len(digits(True)) == 1347 and len(digits(False)) == 450


@pytest.mark.parametrize("kind", ["digits", "fashion_mnist", "fake"])
def test_each_side_has_samples_of_its_own(part: Any, loader: Any, tmp_path: Path, kind: str) -> None:
    one = part(kind, batch_size=10, **({"root": str(fashion(tmp_path))} if kind == "fashion_mnist" else {}))
    sides = [loader(part(kind, batch_size=10, **_own(one)), train=train) for train in (True, False)]
    first = [next(side.batches(0)) for side in sides]
    assert not torch.equal(first[0]["image"], first[1]["image"])
    if kind != "fashion_mnist":
        assert sides[1].facts.num_samples == describe(one, train=False).num_samples


def _own(part: Any) -> dict[str, Any]:
    return dict(part.dataset.kwargs.model_extra)


def test_digits_without_scikit_learn(part: Any, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcli.data.classification.arrays.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"KD502.*scikit-learn") as error:
        loader(part("digits"))
    assert "kdcli[demo]" in (error.value.diagnostics[0].help or "")


# idx files


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_from_a_folder(part: Any, loader: Any, tmp_path: Path, zipped: bool) -> None:
    fashion(tmp_path, zipped=zipped)
    made = loader(
        part("fashion_mnist", root=str(tmp_path), split="train", limit=15, batch_size=20), train=False
    )
    batch = next(made.batches(0))
    assert batch["image"].shape == (15, 1, 28, 28) and batch["labels"].tolist() == [i % 10 for i in range(15)]
    first = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)[0]
    assert torch.equal(batch["image"][0, 0], torch.from_numpy(first).float() / 255)
    relative = fashion_mnist(TRAIN, Places(tmp_path.parent), True, root=tmp_path.name, split="test")
    assert len(relative) == 20


def test_missing_fashion_mnist_says_how_to_get_it(part: Any, loader: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="KD506") as error:
        loader(part("fashion_mnist", root=str(tmp_path)))
    found = error.value.diagnostics[0]
    assert found.path == (*TRAIN, "dataset", "kwargs", "root")
    assert "dataset-fashion-mnist" in (found.help or "") and "`root`" in (found.help or "")


@pytest.mark.parametrize(
    "content,said",
    [
        (b"", "does not start"),
        (b"\x89PNG", "does not start"),
        (b"\0\0\x0d\x03" + bytes(12), "does not start"),
        (b"\0\0\x08\x01" + bytes(4), "1 dimensions instead of 3"),
        (b"\0\0\x08\x03" + bytes(5), "cut short"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(7), "7 follow"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(9), "more follow"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31), "declares"),
    ],
)
def test_a_wrong_idx_file_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    for name, written in (("x", content), ("x.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(written)
        with pytest.raises(RunError, match=f"KD510.*{said}"):
            read_idx(tmp_path / name, 3)


def test_a_torn_gzip_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(idx(np.arange(240, dtype=np.uint8).reshape(10, 4, 6)))
    (tmp_path / "x.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="KD510"):
        read_idx(tmp_path / "x.gz", 3)


# fake, folders, torchvision


def test_fake_classes_can_be_learned_and_splits_share_them(part: Any, loader: Any) -> None:
    both = [
        next(
            loader(
                part("fake", num_samples=200, num_classes=5, seed=seed, batch_size=200), train=False
            ).batches(0)
        )
        for seed in (0, 1)
    ]
    assert not torch.equal(both[0]["image"], both[1]["image"])
    means = torch.stack([both[0]["image"][both[0]["labels"] == c].mean(0) for c in range(5)])
    distance = torch.cdist(both[1]["image"].flatten(1), means.flatten(1))
    assert float((distance.argmin(1) == both[1]["labels"]).float().mean()) > 0.95


def tree(place: Path) -> Path:
    for number, name in enumerate(["cat", "dog/big", "dog/small", "ant"]):
        (place / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB" if number else "L", (6, 5), number * 20).save(place / name / f"{i}.png")
    (place / "dog" / "notes.txt").write_text("no image")
    return place


def test_image_folder(part: Any, loader: Any, tmp_path: Path) -> None:
    made = loader(part("image_folder", root=str(tree(tmp_path)), batch_size=20), train=False)
    assert made.facts.class_names == ("ant", "cat", "dog") and made.facts.shape == (3, 5, 6)
    assert next(made.batches(0))["labels"].tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


def test_wrong_image_folders(part: Any, loader: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"KD506.*no folder"):
        loader(part("image_folder", root=str(tmp_path / "nowhere")))
    with pytest.raises(SpecError, match=r"KD506.*no subfolders"):
        loader(part("image_folder", root=str(tmp_path)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"KD506.*no images"):
        loader(part("image_folder", root=str(tmp_path)))
    with pytest.raises(SpecError, match="KD515"):
        loader(part("image_folder", root=str(tree(tmp_path)), num_classes=7))


def test_torchvision_datasets_in_memory_and_by_sample(part: Any, loader: Any, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    fashion(raw, zipped=False)
    ours = loader(part("fashion_mnist", root=str(tmp_path), split="train", batch_size=20), train=False)
    theirs = loader(part("torchvision.FashionMNIST", root=str(tmp_path), batch_size=20), train=True)
    wanted = next(ours.batches(0))
    got = next(theirs.batches(0))
    order = got["indices"].argsort()
    assert torch.equal(got["image"][order], wanted["image"]) and theirs.facts.num_classes == 10
    fake = part("torchvision.FakeData", size=6, image_size=[3, 8, 9], num_classes=2, batch_size=6)
    batch = next(loader(fake).batches(0))
    assert batch["image"].shape == (6, 3, 8, 9)


def test_torchvision_never_downloads(part: Any, loader: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="KD506") as error:
        loader(part("torchvision.CIFAR100", root=str(tmp_path)))
    assert "download=True" in (error.value.diagnostics[0].help or "")
    with pytest.raises(SpecError, match=r"KD506.*never downloads"):
        loader(part("torchvision.CIFAR100", root=str(tmp_path), download=True))
    assert not list(tmp_path.iterdir())
    for kwargs, name, code in (
        ({}, "CIFAR1000", "KD501"),
        ({"roots": "x"}, "CIFAR10", "KD505"),
        ({}, "CIFAR10", "KD505"),
    ):
        with pytest.raises(SpecError, match=code):
            loader(part(f"torchvision.{name}", **kwargs))


def test_pickled_mnist_folders_are_refused(part: Any, loader: Any, tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "processed").mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        (tmp_path / "MNIST" / "processed" / name).write_bytes(b"")
    with pytest.raises(SpecError, match=r"KD506.*pickle"):
        loader(part("torchvision.MNIST", root=str(tmp_path)))


def test_unknown_names(part: Any, loader: Any) -> None:
    for kwargs, where in (
        ({"type": "digit"}, ("dataset", "type")),
        ({"type": "fake", "num_sample": 3}, ("dataset", "kwargs")),
        ({"sampler": {"type": "dits"}}, ("batch_sampler", "kwargs", "sampler", "type")),
        ({"dataloader": {"batch_fn": {"type": "batch_mix"}}}, ("dataloader", "kwargs", "batch_fn", "type")),
    ):
        with pytest.raises(SpecError) as error:
            loader(part(**{"type": "fake", **kwargs}))
        assert error.value.diagnostics[0].path == (*TRAIN, *where)


# describe


@pytest.mark.parametrize(
    "kind,kwargs",
    [
        ("digits", {}),
        ("digits", {"split": "test", "size": 16}),
        ("fashion_mnist", {}),
        ("fashion_mnist", {"split": "test", "limit": 7}),
        ("digits", {"limit": 7}),
        ("fake", {"num_samples": 12, "num_classes": 3, "shape": [1, 20, 24]}),
        ("torchvision.FakeData", {"size": 4, "image_size": [3, 20, 20], "num_classes": 2}),
    ],
)
@pytest.mark.parametrize(
    "transformer",
    [
        [],
        [{"type": "torch_resize", "kwargs": {"size": 17}}, {"type": "to_tensor"}, NORMALIZE],
        [{"type": "to_rgb"}, {"type": "torch_random_crop", "kwargs": {"size": [6, 8], "padding": 4}}],
        [{"type": "torchvision.Resize", "kwargs": {"size": [9, 11]}}, {"type": "torchvision.RandAugment"}],
    ],
)
def test_describe_is_what_comes_out(
    part: Any, loader: Any, tmp_path: Path, kind: str, kwargs: dict[str, Any], transformer: list[Any]
) -> None:
    if kind == "fashion_mnist":
        kwargs = {**kwargs, "root": str(fashion(tmp_path))}
    one = part(kind, transformer=transformer, **kwargs)
    told, made = describe(one), loader(one)
    assert tuple(next(made.batches(0))["image"].shape[1:]) == made.facts.shape == told.shape
    assert made.facts.mean == told.mean == ((0.3,) if NORMALIZE in transformer else None)
    if kind != "torchvision.FakeData":
        assert (told.num_classes, told.class_names) == (made.facts.num_classes, made.facts.class_names)
    if kind != "fashion_mnist":
        assert told.num_samples == made.facts.num_samples


def test_describe_never_raises_and_needs_no_torch(part: Any) -> None:
    for transformer in ([{"type": "torch_resize"}], [{"type": "torch_pad", "kwargs": {"padding": "x"}}]):
        assert describe(part("fake", transformer=transformer)).shape is None
    facts = describe(
        part("cls", meta_file="x", transformer=[{"type": "torch_center_crop", "kwargs": {"size": 224}}])
    )
    assert facts.shape == (3, 224, 224) and facts.num_classes is None
    assert describe(part("torchvision.CIFAR100"), train=False).num_samples == 10_000
    code = "import sys, kdcli.data.facts, kdcli.data.evaluators, kdcli.data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# check


def test_check_files_finds_what_is_wrong(part: Any, tmp_path: Path) -> None:
    assert look_at(part("fake"), TRAIN) == []
    missing = look_at(part("fashion_mnist", root=str(tmp_path)), TRAIN)
    assert [d.code for d in missing] == ["KD506"]
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    (tmp_path / "list").write_text("good.png 0\nbad.png 1\ngone.png 2\n")
    reader = {"type": "fs_pillow", "kwargs": {"image_dir": str(tmp_path)}}

    def listed(**dataloader: Any) -> Any:
        return part("cls", meta_file=str(tmp_path / "list"), image_reader=reader, dataloader=dataloader)

    found = look_at(listed(), TRAIN)
    assert [d.code for d in found] == ["KD511", "KD511"] and found[0].path == (*TRAIN, "dataset")
    assert f"1 image is missing of 3 in `{tmp_path}`: `gone.png`" in found[0].message
    assert f"`{tmp_path}/bad.png` can't be read" in found[1].message
    assert [d.message for d in look_at(listed(), TRAIN, look="quick")] == [found[0].message]
    assert {d.severity for d in look_at(listed(on_bad_sample="skip"), TRAIN)} == {"warning"}
    (tmp_path / "list").write_text("good.png 0\nother 1 x\n")
    assert [d.code for d in look_at(listed(), TRAIN)] == ["KD510"]
    wrong = part("fake", transformer=[{"type": "torch_random_crop", "kwargs": {"size": 99}}])
    assert [d.code for d in look_at(wrong, TRAIN)] == ["KD517"]


def test_every_error_is_for_users(part: Any, loader: Any) -> None:
    with pytest.raises(KdError):
        loader(part("fake", shape=[3, 0, 1]))
