"""Codes KD7xx: the run itself."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

RUN: dict[str, Explanation] = {
    "KD740": Explanation(
        "file that cannot be written",
        "The disk is full, or the folder is read-only or somebody else's. The last checkpoint is whole.",
        "free some space, then: kdcli train cfg.yaml --resume\nor elsewhere: saver.save_dir=~/runs/digits",
    ),
    "KD741": Explanation(
        "finished run in the way",
        "The run folder holds a run that has come to its end; nothing is overwritten unasked.",
        "kdcli train cfg.yaml --overwrite, or kdcli train cfg.yaml saver.save_dir=runs/second",
    ),
    "KD742": Explanation(
        "unfinished run in the way",
        "The run folder holds checkpoints of a run that was stopped; say whether to go on or to start over.",
        "kdcli train cfg.yaml --resume, or kdcli train cfg.yaml --overwrite",
    ),
    "KD743": Explanation(
        "run folder is a link",
        "Clearing or filling a folder through a symbolic link may hit another place than was meant.",
        "name the real folder: saver.save_dir=/data/runs/digits",
    ),
    "KD750": Explanation(
        "not a run",
        "`report` and `compare` read run folders: those that hold metrics.jsonl and spec.resolved.yaml.",
        "wrong: kdcli compare runs\nright: kdcli compare runs/digits_kd runs/digits_student",
    ),
    "KD751": Explanation(
        "run with nothing to show",
        "The folder is a run's, but not one step or evaluation has been recorded yet.",
        "kdcli report runs/digits_kd, once the first epoch is over",
    ),
    "KD752": Explanation(
        "broken or half-written file in a run",
        "A file of the run cannot be read as what it should be, mostly because its writer was killed.",
        "remove report_data.json, then: kdcli report runs/digits_kd",
    ),
    "KD753": Explanation(
        "run of another version",
        "The folder was written by a kdcli whose run format differs; guessing would show wrong numbers.",
        "read it with the version that env.json names",
    ),
    "KD755": Explanation(
        "no plotting library",
        "Curves are drawn with matplotlib, which only the extra `report` installs.",
        "pip install 'kdcli[report]'",
    ),
}
