"""The teacher cache: the same losses as live, whatever was there before, and never for something else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from kdcli import disk
from kdcli.distill.cached import CachedTeacher, Column, Store, cache_layout_of
from kdcli.distill.taps import Taps
from kdcli.distill.teacher import Teacher
from kdcli.errors import KdError, RunError, SpecError
from kdcli.models.network import Network
from kdcli.parallel.distributed import Processes
from kdcli.records import Notice, Step
from kdcli.spec.parse import ParsedSpec
from kdcli.training.make_caches import make_caches
from kdcli.training.run import RunOptions
from kdcli.training.train import train
from tests.damages import damages
from tests.training.runs import SPEC, run_of, spec_of, train_all

FEATURES = SPEC.replace(
    "loss: {type: kd_loss, kwargs: {T: 2}}", "hint: {type: l2_loss, adapter: {type: auto}}"
).replace("mimic_name: [logits]", "mimic_name: [model.layer2]")
TEACHER = "mimic.teacher0.cache="


def cached(text: str = SPEC, cache: str = "{views: 2, dir: caches}", *assignments: str) -> ParsedSpec:
    return spec_of(text, f"{TEACHER}{cache}", *assignments)


def losses(records: list[Any]) -> list[dict[str, float]]:
    return [r.losses for r in records if isinstance(r, Step)]


def close(one: list[dict[str, float]], other: list[dict[str, float]], tolerance: float = 1e-6) -> bool:
    assert len(one) == len(other) > 0
    return all(
        a.keys() == b.keys() and all(abs(a[k] - b[k]) <= tolerance * max(1.0, abs(a[k])) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def make(parsed: ParsedSpec) -> list[str]:
    here = Processes(device=torch.device("cpu"))
    return [notice.message for notice in make_caches(parsed, RunOptions(), here)]


def size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*.values"))


def told(records: list[Any]) -> str:
    return "\n".join(r.message for r in records if isinstance(r, Notice))


def count_teacher_runs(run: Any) -> list[int]:
    """How many samples the live teacher shows from here on, the guard's look at it aside."""
    seen: list[int] = []
    source = run.sources["teacher0"]
    fill = source.fill

    def counted(batch: Mapping[str, Any], rows: torch.Tensor, missing: torch.Tensor) -> None:
        seen.append(int(missing.sum()))
        fill(batch, rows, missing)

    source.fill = counted
    return seen


@pytest.mark.parametrize("text", [SPEC, FEATURES], ids=["logits", "feature"])
def test_cached_and_live_give_the_same_losses(text: str) -> None:
    live = losses(train_all(spec_of(text, "saver.save_dir=live")))
    parsed = cached(text, "{views: 2, dir: caches}", "saver.save_dir=first")
    filling = losses(train_all(parsed))
    reading = losses(train_all(cached(text, "{views: 2, dir: caches}", "saver.save_dir=second")))
    assert close(live, filling) and close(live, reading)


def test_a_folded_teacher_of_another_layout_is_cached_like_the_plain_one() -> None:
    cheaper = ("runtime.fold_bn=true", "runtime.channels_last=true")
    live = losses(train_all(spec_of(FEATURES, "saver.save_dir=live", *cheaper)))
    cache = "{views: 2, dir: caches}"
    filling = losses(train_all(cached(FEATURES, cache, "saver.save_dir=first", *cheaper)))
    reading = losses(train_all(cached(FEATURES, cache, "saver.save_dir=second", *cheaper)))
    assert close(live, filling) and close(live, reading)


def test_a_cache_made_beforehand_needs_no_teacher() -> None:
    live = losses(train_all(spec_of(SPEC, "saver.save_dir=live")))
    words = make(cached())
    assert "80 of 80 rows" in words[-1]
    with run_of(cached()) as run:
        seen = count_teacher_runs(run)
        records = list(train(run))
    assert seen == [] and close(live, losses(records))
    assert "80 of 80 rows are there" in told(records)


def test_views_come_again() -> None:
    with run_of(cached(SPEC, "{dir: caches}")) as run:
        first = {i: x for b in run.train_loader.batches(0) for i, x in zip(b["ids"], b["image"], strict=True)}
        again = {i: x for b in run.train_loader.batches(5) for i, x in zip(b["ids"], b["image"], strict=True)}
        assert all(torch.equal(first[i], again[i]) for i in first)
        seen = count_teacher_runs(run)
        list(train(run))
    assert sum(seen) == 40


def test_a_half_filled_cache_is_filled_up() -> None:
    live = losses(train_all(spec_of(SPEC, "saver.save_dir=live")))
    with run_of(cached()) as run:
        source = run.sources["teacher0"]
        assert isinstance(source, CachedTeacher)
        batches = list(run.train_loader.batches(0))
        for batch in batches[:2]:
            source.view(batch)
        rows = torch.arange(0, 40, 3) + 40
        some = {**run.train_loader.some(rows.sub(40).tolist()), "view": 1, "ids": rows.sub(40).numpy()}
        next_view = {
            i: x for b in run.train_loader.batches(1) for i, x in zip(b["ids"], b["image"], strict=True)
        }
        some["image"] = torch.stack([next_view[i] for i in some["ids"]])
        source.view(some)
        source.flush()
    with run_of(cached()) as run:
        seen = count_teacher_runs(run)
        records = list(train(run))
    assert sum(seen) == 80 - 16 - 14
    assert close(live, losses(records))


def test_what_was_not_synced_does_not_count() -> None:
    with run_of(cached()) as run:
        source = run.sources["teacher0"]
        assert isinstance(source, CachedTeacher)
        batch = next(iter(run.train_loader.batches(0)))
        source.view(batch)
        folder, columns = source.store.folder, source.store.columns
        from kdcli.distill.cached import Store

        assert Store(folder, columns, 80).count() == 0
        source.flush()
        assert Store(folder, columns, 80).count() == len(batch["image"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("runtime.random_seed=9", "the seed"),
        ("dataset.train.dataset.kwargs.transformer.0.kwargs.padding=2", "the data"),
        ("mimic.teacher0.mimic_name=[model.fc]", "what the jobs read"),
        ("teacher0.kwargs.widths=[4, 4, 8, 8]", "its weights"),
        ("runtime.teacher_precision=bf16", "its precision"),
    ],
)
def test_anything_else_is_another_cache(change: str, words: str) -> None:
    make(cached())
    changed = make(cached(SPEC, "{views: 2, dir: caches}", change))
    assert len(list(Path("caches").iterdir())) == 2
    assert words in changed[0] and "does not fit" in changed[0]


def test_changed_data_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    make(cached())
    from kdcli.training import caches

    real = caches.probe_of
    monkeypatch.setattr(caches, "probe_of", lambda loader: torch.as_tensor(real(loader)) + 0.1)
    assert "the data has changed" in make(cached())[0]


def test_a_teacher_whose_code_was_edited_is_cached_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = cached()
    make(parsed)
    assert not any("cached anew" in message for message in make(parsed))
    plain = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: 3.0 * plain(self, x))
    said = make(parsed)
    assert any(
        "teacher0 answers otherwise (its code has changed, or images have)" in message for message in said
    ), said
    assert not any("cached anew" in message for message in make(parsed))


def test_an_image_under_another_number_is_another_cache(tmp_path: Path) -> None:
    """One file went and one came: as many as before, and every number between them means another image."""
    for label, name in enumerate("abcd"):
        for i in range(10):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 50 * label + 5 * i).save(tmp_path / "images" / name / f"{i}.png")
    kwargs = f"{{root: {tmp_path}/images, color_mode: GRAY, transformer: [{{type: to_tensor}}]}}"
    data = f"dataset.train.dataset={{type: image_folder, kwargs: {kwargs}}}"
    parsed = cached(SPEC, "{views: 2, dir: caches}", data)
    make(parsed)
    assert not any("cached anew" in message for message in make(parsed))
    (tmp_path / "images/c/3.png").unlink()
    shutil.copy(
        tmp_path / "images/c/0.png", tmp_path / "images/c/6b.png"
    )  # none of the 8 whose pixels are kept
    said = make(parsed)
    assert any("images came, went, changed or come in another order since " in message for message in said), (
        said
    )


@pytest.mark.slow
def test_half_precision_and_topk_are_close_and_small() -> None:
    live = losses(train_all(spec_of(SPEC, "saver.save_dir=live")))
    half = cached(SPEC, "{views: 2, dir: half, dtype: float16}", "saver.save_dir=half_run")
    top = cached(SPEC, "{views: 2, dir: top, topk: 3}", "saver.save_dir=top_run")
    all_of_them = cached(SPEC, "{views: 2, dir: top, topk: 4}", "saver.save_dir=all_run")
    assert close(live, losses(train_all(half)), 1e-2)
    assert close(live, losses(train_all(all_of_them)))
    # All but one of four logits are kept, so the last one's share is exact too.
    assert close(live, losses(train_all(top)), 1e-5)
    assert size("half") == 2 * 40 * 4 * 2


def test_what_does_not_fit_is_refused() -> None:
    with (
        pytest.raises(KdError, match="would take") as caught,
        run_of(cached(FEATURES, "{limit_gb: 0.00001}")),
    ):
        pass
    assert caught.value.diagnostics[0].code == "KD552"


@pytest.mark.parametrize(
    "assignment",
    [
        "mimic.teacher0.teacher_bn_mode=train",
        "dataset.train.dataloader.kwargs.batch_fn={type: mixup, kwargs: {num_classes: 4}}",
        "trainer.parallel=fsdp",
    ],
)
def test_what_depends_on_the_batch_is_refused(assignment: str) -> None:
    with pytest.raises(SpecError) as caught:
        cached(SPEC, "{}", assignment)
    assert "KD550" in {d.code for d in caught.value.diagnostics}


def test_nothing_to_cache_is_said() -> None:
    with pytest.raises(RunError, match="no teacher"):
        make(spec_of())


def test_a_frozen_teacher_shows_a_sample_the_same_in_any_batch() -> None:
    with run_of(spec_of(FEATURES)) as run:
        batch = next(iter(run.train_loader.batches(0)))
        whole = run.teachers["teacher0"].view(batch).features["model.layer2"]
        alone = [
            run.teachers["teacher0"].view({"image": image[None]}).features["model.layer2"]
            for image in batch["image"]
        ]
    assert isinstance(whole, torch.Tensor)
    assert torch.allclose(whole, torch.cat(alone), atol=1e-6)  # type: ignore[arg-type]


def test_a_resumed_run_reads_what_the_killed_one_stored() -> None:
    whole = losses(train_all(cached(SPEC, "{dir: whole}", "trainer.max_epoch=4", "saver.save_dir=whole_run")))
    parsed = cached(SPEC, "{dir: part}", "trainer.max_epoch=4", "saver.save_dir=part_run")
    first: list[Any] = []
    with run_of(parsed) as run:
        for record in train(run):
            first.append(record)
            if type(record).__name__ == "Saved" and record.step == 10:  # type: ignore[union-attr]
                break
    rest = losses(train_all(parsed, resume=True))
    assert losses(first) + rest == whole


def test_caches_of_one_run_have_the_same_views() -> None:
    text = SPEC.replace("teacher0: &teacher", "teacher1: &teacher", 1).replace(
        "mimic:\n", "teacher0: *teacher\nmimic:\n", 1
    )
    part = "{mimic_name: [logits], allow_random: true, allow_weak_teacher: true, cache: {views: 3}}"
    with pytest.raises(SpecError) as caught:
        cached(text, "{views: 2}", f"mimic.teacher1={part}")
    assert "KD551" in {d.code for d in caught.value.diagnostics}


def test_a_place_that_cannot_be_written_is_told() -> None:
    Path("caches").write_text("a file")
    with pytest.raises(RunError) as caught, run_of(cached()):
        pass
    assert caught.value.diagnostics[0].code == "KD554"


def test_a_feature_without_a_row_a_sample_is_refused() -> None:
    class Turned(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(2).permute(2, 0, 1)

    net = Network({"model": nn.Sequential(Turned(), nn.Flatten())})
    batch = {"image": torch.rand(2, 1, 4, 4)}
    with Taps(net, ["model.0"], outputs=()) as taps:
        teacher = Teacher("teacher0", taps)
        with pytest.raises(SpecError, match=r"\[16, 2, 1\] for 2 samples"):
            cache_layout_of(teacher, teacher.learn(batch), 2, half=False, topk=None)


def store_of(parsed: ParsedSpec) -> Path:
    """The folder of the one cache, made and full."""
    make(parsed)
    (folder,) = Path("caches").iterdir()
    return folder


@pytest.mark.parametrize("each", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_damages_to_a_cache_are_noticed(each: int, tmp_path: Path) -> None:
    """Bits, cuts, zeros, exchanged rows and files: what counts as stored is bit-equal to what was stored."""
    columns = [
        Column("hint", (3, 2), torch.float32, torch.float32),
        Column("half", (3, 2), torch.float32, torch.float16),
        Column("logits", (9,), torch.float32, torch.float32, topk=4),
        Column("more", (3, 2), torch.float32, torch.float32),
    ]
    folder, rows = tmp_path / "store", torch.arange(30)
    Store.create(folder, columns, 30, {})
    draws = torch.Generator().manual_seed(0)
    store = Store(folder, columns, 30)
    store.write(rows[:24], [torch.randn(24, *column.shape, generator=draws) for column in columns])
    store.flush()
    files = [path for path in sorted(folder.iterdir()) if path.name != "meta.json"]
    contents = {path: path.read_bytes() for path in files}
    whole = [store.read(rows, number) for number in range(4)]
    changes = [{path: data} for path in files for data in damages(contents[path], each)]
    pair = (folder / "0.values", folder / "3.values")
    changes += [{pair[0]: contents[pair[1]], pair[1]: contents[pair[0]]}]
    assert len(changes) == 8 * each + 1
    noticed = 0
    for change in changes:
        for path in files:
            path.write_bytes(change.get(path, contents[path]))
        store = Store(folder, columns, 30)
        for number in range(4):
            there = store.has(rows, [number])
            assert torch.equal(store.read(rows[there], number), whole[number][there])
            assert not bool(there[24:].any())
        noticed += bool(store.damaged) or not bool(there[:24].all())
    assert noticed >= 0.9 * len(changes)
    assert store.damaged == 48  # of each of the exchanged files all rows


def test_a_damaged_row_is_told_once_in_training_and_by_cache() -> None:
    parsed = cached()
    folder = store_of(parsed)
    whole = torch.frombuffer(bytearray((folder / "0.values").read_bytes()), dtype=torch.float32)
    for run_again in (lambda: train_all(parsed), lambda: make(parsed)):
        with (folder / "0.values").open("rb+") as file:
            file.seek(4 * 4 * 7 + 1)
            file.write(b"\x42")
        records = run_again()
        text = told(records) if not isinstance(records[0], str) else "\n".join(records)
        assert text.count(f"1 row of the cache {folder} was not as stored") == 1
        mended = torch.frombuffer(bytearray((folder / "0.values").read_bytes()), dtype=torch.float32)
        assert torch.allclose(mended, whole, atol=1e-6)


def test_a_cache_of_kdcli_0_2_is_read_unchecked_and_that_is_told() -> None:
    parsed = cached()
    folder = store_of(parsed)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "checked"}))
    (folder / "checks.i32").unlink()
    with run_of(parsed) as run:
        seen = count_teacher_runs(run)
        assert any("has no checksums, as kdcli 0.2 made it" in notice for notice in run.notices)
        list(train(run))
    assert seen == [] and not (folder / "checks.i32").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_not_stored(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Teacher.view

    def shown(teacher: Teacher, batch: Mapping[str, Any]) -> Any:
        view = real(teacher, batch)
        for at in (batch["ids"] == 17).nonzero()[0] if "ids" in batch else ():
            view.outputs["logits"][at, 1] = value
        return view

    monkeypatch.setattr(Teacher, "view", shown)
    with pytest.raises(RunError) as caught:
        make(cached())
    assert caught.value.diagnostics[0].code == "KD545"
    assert "of teacher0 is NaN or infinite for 1 of 8 samples (the first is number 17" in str(caught.value)


def test_what_a_killed_process_left_of_a_cache_is_swept() -> None:
    Path("caches").mkdir()
    dead = Path(f"caches/teacher0-{'0' * 16}.{2**22 + 1}-{disk._computer()}.tmp")
    old = Path(f"caches/.teacher0-{'0' * 16}.{2**22 + 1}")
    living = Path(f"caches/teacher0-{'1' * 16}.{os.getppid()}-{disk._computer()}.tmp")
    users = Path("caches/.notes.12")
    for folder in (dead, old, living, users):
        folder.mkdir()
        (folder / "0.values").write_bytes(b"half")
    make(cached())
    assert not dead.exists() and not old.exists() and living.exists() and users.exists()
