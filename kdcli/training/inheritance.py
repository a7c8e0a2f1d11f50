"""What a stage takes over from the stages before it: FT's paraphraser, trained on the teacher first."""

from __future__ import annotations

from collections.abc import Iterator

from kdcli.distill.mimickers.mimicker import Mimicker
from kdcli.records import Notice
from kdcli.training.run import Run


def inherited(run: Run, index: int) -> Iterator[Notice]:
    """Hand a beginning stage's jobs those of the stages before; warn of what finds no ancestor."""
    mimickers = run.trainee.mimickers

    def jobs_of(number: int) -> list[str]:
        wanted = run.stages[number].force.jobs
        return [name for name in mimickers if wanted is None or name in wanted]

    earlier = [mimickers[name] for number in range(index) for name in jobs_of(number)]
    ancestors = [mimicker for mimicker in earlier if isinstance(mimicker, Mimicker)]
    for name in jobs_of(index):
        mimicker = mimickers[name]
        assert isinstance(mimicker, Mimicker)
        mine = [ancestor for ancestor in ancestors if ancestor is not mimicker]
        for message in mimicker.inherit(mine):
            yield Notice(message=message, level="warning")
