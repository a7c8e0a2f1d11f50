"""Samples that could not be read: counted over all processes, listed in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator

from kdcli.data.batches import BadRecord
from kdcli.errors import RunError
from kdcli.records import Notice
from kdcli.training.checkpoint import write_whole
from kdcli.training.run import Run
from kdcli.training.state import Progress


class BadSamples:
    """Takes over what the loaders of all processes have noted, each sample once."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        for side, sample, name, reason in progress.bad_samples:
            loader = run.train_loader if side == "train" else run.test_loader
            if all(known.sample != sample for known in loader.bad_samples):
                loader.bad_samples.append(BadRecord(sample, name, reason))

    def take(self) -> Iterator[Notice]:
        """Bring list and count up to date; every process takes part.

        Raises RunError KD512 where all processes together found more than the budget allows.
        """
        run, progress = self.run, self.progress
        own = [
            (side, bad.sample, bad.name, bad.reason)
            for side, loader in (("train", run.train_loader), ("test", run.test_loader))
            for bad in loader.bad_samples
        ]
        known = {(side, sample) for side, sample, _, _ in progress.bad_samples}
        new = {}
        for theirs in run.processes.gather(own):
            for side, sample, name, reason in theirs:
                if (side, sample) not in known:
                    new[side, sample] = (side, sample, name, reason)
        if not new:
            return
        progress.bad_samples = [*progress.bad_samples, *new.values()]
        path = run.folder.root / "bad_samples.jsonl"
        if run.processes.speaks:
            lines = [
                json.dumps(
                    dict(zip(("side", "sample", "name", "reason"), row, strict=True)), ensure_ascii=False
                )
                for row in progress.bad_samples
            ]
            write_whole(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))
        yield Notice(
            message=f"{len(progress.bad_samples)} sample(s) can't be read and are left out; they are listed in {path}",
            level="warning",
        )
        budget = run.spec.dataset.train.dataloader.kwargs.bad_sample_budget
        if len(progress.bad_samples) > budget:
            raise RunError.of(
                "KD512",
                f"{len(progress.bad_samples)} samples can't be read, more than `bad_sample_budget` allows ({budget})",
                f"they are listed in {path}; mend the data, or raise `bad_sample_budget`",
            )
