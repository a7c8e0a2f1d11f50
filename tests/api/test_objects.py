"""Objects in memory as arguments: what may be given, and what is said of what can't be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import kdcli
from kdcli.api.objects import given_again, objects_of
from kdcli.api.reading import in_python
from kdcli.data.classification.in_memory import GivenBatches, GivenImages, source_of
from kdcli.models.in_memory import architecture_of
from kdcli.spec.in_memory import in_memory
from tests.api.objects import Net, Noisy, images, made, spec


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def codes(given: dict[str, Any], *changes: str, **more: Any) -> list[str]:
    arguments = {"student": made(), "teachers": made(8), "data": (images(), images(16)), **given}
    return [found.code for found in kdcli.validate(spec(**more), changes=changes, **arguments)]


def test_a_spec_without_networks_and_data_is_right_with_them() -> None:
    assert codes({}) == []
    assert not in_memory()
    assert [one.code for one in kdcli.validate(spec(), student=made())][:1] == ["KD203"]


def test_the_checks_of_a_spec_are_made_of_objects() -> None:
    assert codes({"student": made(classes=3)}) == ["KD419", "KD470"]
    assert codes({}, "mimic.student.mimic_name=[model.cnv]") == ["KD422"]
    assert codes({"data": kdcli.Data(train=images(), test=images(16), classes=list("abcde"))}) == ["KD419"]
    bright = TensorDataset(images().tensors[0] * 100, images().tensors[1])
    assert codes({"data": (bright, images(16))}) == ["KD877"]
    wide = TensorDataset(torch.zeros(8, 3, 8, 8), torch.arange(8) % 4)
    assert "KD418" in codes({"data": (wide, wide)})


def test_one_text_is_a_list_of_one() -> None:
    arguments = {"student": made(), "teachers": made(8), "data": (images(), images(16))}
    (found,) = kdcli.validate(
        spec(), changes="mimic.student.mimic_name=[model.cnv]", plugins="tests", **arguments
    )
    assert found.code == "KD422"


def test_what_the_spec_says_beside_finished_images_is_an_error() -> None:
    transform = "dataset.train.dataset.kwargs.transformer=[{type: to_tensor}]"
    assert codes({}, transform) == ["KD873"]
    assert codes({}, "dataset.train.dataloader.kwargs.in_memory=true") == ["KD873"]
    batches = DataLoader(images(), batch_size=4)
    mixed = "dataset.dataloader.kwargs.batch_fn={type: batch_mixup, kwargs: {alpha: 0.2, num_classes: 4}}"
    assert codes({"data": {"train": batches, "test": batches}}, mixed) == ["KD873", "KD873"]


def test_the_spec_keeps_its_transforms_and_loses_its_files() -> None:
    kwargs = {"root": "gone", "transformer": [{"type": "to_tensor"}]}
    part = {"dataset": {"type": "image_folder", "kwargs": kwargs}}
    of_files = {**spec(), "dataset": {**spec()["dataset"], "train": part, "test": part}}

    class Pictures:
        classes = ("a", "b", "c", "d")

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            grey = np.full((8, 8), 40 * (index % 4) + 9, dtype=np.uint8)
            grey[0] = 3
            return Image.fromarray(grey), index % 4

    given = objects_of(kdcli.Spec.from_dict(of_files), made(), made(8), (Pictures(), Pictures()))
    parsed = kdcli.Spec.from_dict(of_files).parsed(given.changes)
    assert [one.type for one in parsed.spec.dataset.train.dataset.kwargs.transformer] == ["to_tensor"]
    assert not parsed.spec.dataset.train.dataset.kwargs.model_extra
    found = kdcli.validate(of_files, student=made(), teachers=made(8), data=(Pictures(), Pictures()))
    assert [one.code for one in found] == []


def test_the_batch_size_is_the_loaders() -> None:
    given = objects_of(
        kdcli.Spec.from_dict(spec()), made(), made(), {"train": DataLoader(images(), batch_size=5)}
    )
    assert "dataset.train.batch_sampler.kwargs.batch_size=5" in given.changes


@pytest.mark.slow
@pytest.mark.parametrize(("size", "told"), [(5, True), (4, False), (None, False)])
def test_a_batch_size_beside_a_loader_is_told(size: int | None, told: bool, capsys: Any) -> None:
    written = {} if size is None else {"batch_sampler": {"kwargs": {"batch_size": size}}}
    wanted = {**spec(max_epoch=1), "dataset": written}
    sides = (DataLoader(images(), batch_size=4), DataLoader(images(16), batch_size=16))
    kdcli.train(wanted, student=made(), teachers=made(8), data=sides, report=False)
    said = "has batches of 4: `batch_size: 5` of the spec changes nothing"
    assert (said in capsys.readouterr().err) is told


def floats(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def batch(image: Any, labels: Any) -> list[Any]:
    return [(image, labels)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([(1, 2)], "the image of an item is a `int`"),
        ([()], "an item is a `tuple`"),
        ([{"image": 1}], r"an item is a `dict`, not \(image, label\)"),
        ([(floats(8, 8, 3), 0)], r"its channels come last.*image.permute\(2, 0, 1\)"),
        ([(floats(8, 8), 0)], r"an image is torch.float32 \[8, 8\], not \[C, H, W\]"),
        ([(floats(1, 8, 8), 0.5), (floats(1, 8, 8), "cat")], "labels are whole numbers"),
        ([(floats(1, 8, 8), 0.5)], r"got `0.5`: give `int\(label\)`"),
        ([(floats(1, 8, 8), torch.eye(4)[1])], r"one-hot row give `int\(label.argmax\(\)\)`"),
        ([(floats(1, 8, 8), torch.tensor([2]))], r"give `label.item\(\)`"),
        ([(floats(1, 8, 8), -1)], "label -1 of item 0"),
        ([], "the Dataset is empty"),
        (3, "a `int` is no data"),
        (DataLoader(TensorDataset(floats(8, 8, 8, 1), torch.zeros(8).long()), batch_size=8), "permute"),
        (
            DataLoader(TensorDataset(floats(8, 1, 8, 8).byte(), torch.zeros(8).long()), batch_size=8),
            "not floats",
        ),
        (DataLoader(TensorDataset(floats(8, 1, 8, 8), torch.eye(8)), batch_size=8), r"labels.argmax\(1\)"),
        (DataLoader(TensorDataset(floats(8, 1, 8, 8), torch.zeros(8) - 1), batch_size=8), "whole numbers"),
    ],
)
def test_data_that_cannot_be_used(data: Any, said: str) -> None:
    with pytest.raises(kdcli.SpecError, match=rf"(?s)KD874: the training data that was given: .*{said}"):
        kdcli.validate(spec(), student=made(), data={"train": data})


def test_labels_that_count_from_one_are_told() -> None:
    counted = TensorDataset(images().tensors[0], images().tensors[1] + 1)
    (found,) = kdcli.validate(spec(), student=made(), teachers=made(8), data=(counted, counted))
    assert (
        found.code == "KD419"
        and "the training data has 5 classes: its labels run from 1 to 4" in found.message
    )
    assert found.help is not None and "`label - 1`" in found.help
    batches = DataLoader(counted, batch_size=8)
    with pytest.raises(kdcli.RunError, match=r"(?s)KD747: .*Target 4 is out of bounds.*`label - 1`"):
        kdcli.train(spec(), student=made(), teachers=made(8), data=(batches, batches), quiet=True)


def test_a_network_that_names_its_logits_otherwise() -> None:
    class Out(Net):
        def forward(self, image: torch.Tensor) -> Any:
            return {"out": super().forward(image)}

    (found,) = kdcli.validate(spec(), student=Out(), teachers=made(8), data=(images(), images()))
    assert found.code == "KD418" and "(the modules before it give `out`)" in found.message
    assert (
        found.help == "let the network return its logits as a tensor, or under the name `logits` of a mapping"
    )


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [slice(8, 9), slice(None)])
def test_images_that_are_not_finite_are_named(wrong: slice) -> None:
    pixels, labels = images().tensors
    pixels = pixels.clone()
    pixels[wrong, 0, 2, 3] = torch.nan
    data = TensorDataset(pixels, labels)
    said = (
        "KD730: .* the image of sample 8 is not finite"
        if wrong.start
        else "KD701: the images of samples .*, ..."
    )
    with pytest.raises(kdcli.RunError, match=f"(?s){said}.*look at these images"):
        kdcli.train(spec(), student=made(), teachers=made(8), data=(data, images()), quiet=True)


class Pictures(Dataset[Any]):
    """Images alone: float tensors [1, 8, 8]."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        picture: torch.Tensor = images().tensors[0][index]
        return picture


LABELLED = {"type": "image_folder", "kwargs": {"root": "gone", "labels": "none"}}


@pytest.mark.parametrize(
    "data",
    [
        Pictures(),
        TensorDataset(images().tensors[0]),
        DataLoader(Pictures(), batch_size=8),
        DataLoader(TensorDataset(images().tensors[0]), batch_size=8),
    ],
)
def test_images_alone_have_no_labels(data: Any) -> None:
    given = objects_of(kdcli.Spec.from_dict(spec()), made(), made(8), {"train": data, "test": images(16)})
    assert "dataset.train.dataset.kwargs.labels=none" in given.changes
    assert "dataset.test.dataset.kwargs.labels=none" not in given.changes
    assert codes({"data": {"train": data, "test": images(16)}}) == []
    wrong = codes({"data": {"train": data, "test": images(16)}}, "mimic.task_loss=true")
    assert wrong == ["KD240"]
    alone = {key: value for key, value in spec().items() if key not in ("mimic", "runtime")}
    found = kdcli.validate(alone, student=made(), data={"train": data, "test": images(16)})
    assert [one.code for one in found] == ["KD241"]


@pytest.mark.parametrize("batched", [False, True])
def test_labels_count_for_nothing_where_the_spec_says_so(batched: bool) -> None:
    class Unasked(Noisy):
        @property
        def targets(self) -> list[int]:
            raise AssertionError("labels are read")

        @targets.setter
        def targets(self, value: list[int]) -> None: ...

    data: Any = DataLoader(Unasked(), batch_size=8) if batched else Unasked()
    part = {"train": {"dataset": LABELLED}}
    told = {**spec(), "dataset": {**spec()["dataset"], **part}}
    given = objects_of(kdcli.Spec.from_dict(told), made(), made(8), {"train": data, "test": images(16)})
    source = given.given.data[True]
    assert getattr(source, "labels", None) is None and "root=" in " ".join(given.changes)
    if isinstance(source, GivenBatches):
        assert source.facts.labels == "none" and "labels" not in source.batch(next(iter(data)), 0)
    found = kdcli.validate(told, student=made(), teachers=made(8), data={"train": data, "test": images(16)})
    assert found == []


def test_a_label_beyond_the_classes_is_found_in_its_batch() -> None:
    batches = DataLoader(images(), batch_size=8)
    with pytest.raises(kdcli.SpecError, match="a label is 3, and there are 3 classes"):
        given = source_of(batches, "train", classes=["a", "b", "c"])
        list(map(given.batch, given.epoch(0, 0), range(4)))


def test_classes_of_batches_on_two_sides() -> None:
    named = [DataLoader(images(), batch_size=8) for _ in range(2)]
    named[0].dataset.classes = ["a", "b", "c", "d"]  # type: ignore[attr-defined]
    named[1].dataset.classes = ["b", "a", "c", "d"]  # type: ignore[attr-defined]
    assert codes({"data": {"train": named[0], "test": named[1]}}) == ["KD541"]
    assert codes({"data": {"train": named[0], "test": named[0]}}) == []


def test_a_subset_has_the_labels_and_classes_of_its_whole() -> None:
    whole = Noisy()
    whole.classes = ("a", "b", "c", "d")  # type: ignore[attr-defined]
    part = source_of(Subset(Subset(whole, list(range(0, 32, 2))), [3, 1]), "train")
    assert isinstance(part, GivenImages) and part.labels is not None
    assert part.labels.tolist() == [2, 2] and part.class_names == ("a", "b", "c", "d")


def test_what_a_dataset_draws_is_a_function_of_seed_epoch_and_item() -> None:
    from kdcli.data.draws import Draws

    def drawn(epoch: int, item: int, seed: int = 0) -> torch.Tensor:
        return source_of(Noisy(), "train").read_drawn(item, Draws(seed, epoch, np.array([item])))  # type: ignore[union-attr]

    torch.manual_seed(1)
    first = drawn(0, 1)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, drawn(0, 1)) and not torch.equal(first, drawn(1, 1))
    assert not torch.equal(first, drawn(0, 1, seed=5)) and not torch.equal(
        first - drawn(0, 5), torch.zeros(1, 8, 8)
    )
    torch.manual_seed(1)
    drawn(0, 1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("own", [False, True])
def test_the_batches_of_a_loader_are_a_function_of_seed_and_epoch(own: bool) -> None:
    generator = torch.Generator().manual_seed(3) if own else None
    given = source_of(DataLoader(Noisy(), batch_size=8, shuffle=True, generator=generator), "train")
    assert isinstance(given, GivenBatches) and given.notices == ()
    before = torch.get_rng_state(), None if generator is None else generator.get_state()

    def labels(seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for pixels, classes in given.epoch(seed, epoch):
            torch.manual_seed(len(found))  # training draws in between
            found.append((pixels, classes))
        return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])

    first, again, later = labels(0, 0), labels(0, 0), labels(0, 1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], later[1]) and not torch.equal(first[0], labels(1, 0)[0])
    assert generator is None or torch.equal(generator.get_state(), before[1])  # type: ignore[arg-type]


def test_an_architecture_is_its_classes_arguments_and_shapes() -> None:
    assert architecture_of(made(seed=1)) == architecture_of(made(seed=2).eval())
    names = {architecture_of(one) for one in (made(), made(5), made(classes=5))}
    dropping = made()
    dropping.drop.p = 0.5
    assert len(names | {architecture_of(dropping)}) == 4
    assert all(name.startswith("Net-") for name in names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"student": Net}, r"`student` is `Net`, not an nn.Module(.|\n)*make one of it: `Net\(\)`"),
        ({"teachers": {"teacher1": made()}}, r"no teacher `teacher1`(.|\n)*did you mean `teacher0`"),
        ({"teachers": {"teacher0": 3}}, r"`teachers\['teacher0'\]` is `int`"),
        ({"data": {"train": images(), "tset": images()}}, "did you mean `test`"),
        ({"data": 3}, "`data` is a `int`"),
    ],
)
def test_arguments_that_are_none(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(kdcli.UsageError, match=said) as wrong:
        kdcli.validate(spec(), **arguments)
    assert wrong.value.exit_code == 2


def test_one_module_for_several_teachers_is_refused() -> None:
    two = spec()
    two["mimic"]["teacher1"] = {"mimic_name": ["logits"]}
    with pytest.raises(kdcli.UsageError, match="`teacher0`, `teacher1`"):
        kdcli.validate(two, student=made(), teachers=made())


def test_options_of_the_command_line_are_told_as_arguments() -> None:
    said = in_python(
        "go on with `--resume`, `--overwrite`, `--allow-changed data.train`, `--plugin nets`, `--gpus 2`"
    )
    assert said == (
        "go on with `resume=True`, `overwrite=True`, `allow_changed=['data.train']`, `plugins=['nets']`, `--gpus 2`"
    )


def test_objects_given_again_have_the_specs_names() -> None:
    parsed = kdcli.Spec.from_dict(spec()).parsed(
        objects_of(kdcli.Spec.from_dict(spec()), made(), made(8), (images(), images(16))).changes
    )
    again = given_again(parsed, made(), made(8), {"test": images(16)})
    assert set(again.networks) == {"net", "teacher0"} and set(again.data) == {False}
    with pytest.raises(kdcli.UsageError, match="no teacher `techer0`"):
        given_again(parsed, teachers={"techer0": made()})
