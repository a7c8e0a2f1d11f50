"""The command line: one dataclass a command, a field for each argument and option.

From a field come the option in `kdcli COMMAND --help`, the workers' command line and the command that continues
a run. A new option is one line here, and what its command does with it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from kdcli.commands.option_fields import (
    AUTO,
    Argument,
    Option,
    is_checkpoint,
    words_for_worker,
    words_to_continue,
)

Spec = Annotated[str, Argument("A YAML spec; `-` reads standard input.", "SPEC", "spec")]
RunOrSpec = Annotated[str, Argument("A run folder, or the spec of a run.", "RUN|SPEC", "spec")]
Changes = Annotated[
    tuple[str, ...],
    Argument("Values to set in the spec.", "KEY=VALUE", "key"),
    Option("A value to set in the spec, as an option.", ("--set",), "KEY=VALUE"),
]
Device = Annotated[str | None, Option("auto, cpu or cuda; overrides runtime.device.", metavar="DEVICE")]
Gpus = Annotated[
    str | None,
    Option("How many GPUs, or which: 8, or 0,2, or their names.", metavar="N|LIST", worker=False),
]
Nproc = Annotated[int | None, Option("Processes on this machine, e.g. with --device cpu.", worker=False)]
Plugins = Annotated[
    tuple[str, ...],
    Option(
        "A package of your own that the spec may import: installed, or in the working directory.",
        ("--plugin",),
        "PACKAGE",
    ),
]
Weights = Annotated[
    Path | None, Option("The student's weights; else the best of its run, else the last.", metavar="FILE")
]
Offline = Annotated[
    bool,
    Option("Fetch nothing: weights by name must be on this machine (or KDCLI_OFFLINE=1).", ("--offline",)),
]
WeightKey = Annotated[
    str | None,
    Option("Where in the file of --weights the student lies, a.b, if in no usual place.", metavar="KEY"),
]
BaselineRun = Annotated[
    Path | None,
    Option(
        "A run of the same student without a teacher, shown beside the student in the last table.",
        ("--baseline",),
        metavar="RUN",
    ),
]
Traceback = Annotated[
    bool,
    Option("Print the whole traceback of an error too, for a bug report.", ("--traceback",), again=False),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Train the student of SPEC: distil it (runner `kd`) or train `net` alone (runner `base`)."""

    spec: Spec
    changes: Changes = ()
    gpus: Gpus = None
    device: Device = None
    nproc: Nproc = None
    nnodes: Annotated[int, Option("Number of machines, as in torchrun.", worker=False)] = 1
    node_rank: Annotated[int | None, Option("This machine's number, from 0.", worker=False)] = None
    rdzv_endpoint: Annotated[
        str | None,
        Option("Address at which the machines meet, the same on each.", metavar="HOST:PORT", worker=False),
    ] = None
    max_restarts: Annotated[
        int,
        Option("How often all processes start again from the last checkpoint when one dies.", worker=False),
    ] = 0
    resume: Annotated[
        str | None,
        Option(
            "Continue from the newest valid checkpoint, or from PATH.",
            metavar="[PATH]",
            bare=AUTO,
            is_value=is_checkpoint,
            again=False,
        ),
    ] = None
    overwrite: Annotated[bool, Option("Start over in a folder that holds a run already.", again=False)] = (
        False
    )
    allow_changed: Annotated[
        tuple[str, ...],
        Option(
            "What may differ from the checkpoint: a key of the spec, or `data`.", metavar="KEY", again=False
        ),
    ] = ()
    plugins: Plugins = ()
    quiet: Annotated[bool, Option("Print warnings and the last line only.")] = False
    report: Annotated[bool, Option("Write report.html at the end.")] = True
    baseline: BaselineRun = None
    profile: Annotated[
        int | None,
        Option(
            "Profile N steps instead of training: where their time goes, and a trace.",
            metavar="N",
            minimum=1,
            again=False,
        ),
    ] = None
    offline: Offline = False
    check: Annotated[bool, Option("Prove the spec before the start, as `kdcli validate` does.")] = True
    traceback: Traceback = False

    def for_worker(self) -> list[str]:
        """The words after `kdcli` that start the same command in one of several processes."""
        own = self if self.gpus is None else replace(self, device="cuda")
        return ["train", *words_for_worker(own)]

    def again(self) -> str:
        """The command line that continues this run, for a shell."""
        return shlex.join(["kdcli", "train", *words_to_continue(self), "--resume"])


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """Measure a run's student and its teachers side by side: quality, size, speed, agreement."""

    spec: RunOrSpec
    changes: Changes = ()
    weights: Weights = None
    weight_key: WeightKey = None
    device: Device = None
    plugins: Plugins = ()
    offline: Offline = False
    baseline: BaselineRun = None
    format: Annotated[Literal["table", "json"], Option("table or json.")] = "table"
    save_predictions: Annotated[
        Path | None, Option("Detectors only: write the boxes of each network as COCO json.", metavar="FILE")
    ] = None
    show: Annotated[
        Path | None,
        Option("Detectors only: draw the boxes of student, teachers and ground truth.", metavar="DIR"),
    ] = None
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """Store the teachers' outputs that SPEC caches (`cache` beside mimic_name), before any training."""

    spec: Spec
    changes: Changes = ()
    device: Device = None
    plugins: Plugins = ()
    offline: Offline = False
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """Try other values of SPEC in trials, each a run of its own, and train the best over seeds (extra `sweep`).

    What is tried stands in the block `sweep` of the spec; without one, the loss weight, temperature and learning rate.
    The same command goes on with a sweep that has ended early; a second process of it shares the trials.
    """

    spec: Spec
    changes: Changes = ()
    trials: Annotated[int, Option("How many trials; of a space of lists at most all of it.", minimum=1)] = 20
    seeds: Annotated[
        int, Option("Over how many seeds the best values are trained and tested; 0: not at all.", minimum=0)
    ] = 3
    hold_out: Annotated[
        float | None,
        Option("Share of the training data to measure trials on; else the spec's, or 0.1.", metavar="SHARE"),
    ] = None
    equal: Annotated[
        Literal["steps", "cost"],
        Option(
            "What all trials have alike: steps, or cost (fewer steps where one costs more than the student's)."
        ),
    ] = "steps"
    halving: Annotated[bool, Option("Stop trials that lie behind, by successive halving.")] = True
    folder: Annotated[
        Path | None, Option("Folder of the sweep; else the spec's run folder with -sweep.", ("--dir",), "DIR")
    ] = None
    sampler_seed: Annotated[int, Option("Seed of what is drawn in the space.", minimum=0)] = 0
    device: Device = None
    plugins: Plugins = ()
    offline: Offline = False
    format: Annotated[Literal["table", "json"], Option("Format of the result.")] = "table"
    quiet: Annotated[bool, Option("Print the result only.", ("--quiet", "-q"))] = False
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOptions:
    """Prove every SPEC right before anything runs: no GPU, data or weights needed. Exit 1 if one is wrong."""

    specs: Annotated[tuple[str, ...], Argument("YAML specs; `-` reads standard input.", "SPEC|KEY=VALUE")]
    changes: Annotated[
        tuple[str, ...], Option("A value to set in the spec, as an option.", ("--set",), "KEY=VALUE")
    ] = ()
    files: Annotated[
        Literal["full", "quick"] | None,
        Option(
            "Check data and weight files too; --files=quick reads names and labels of the data, no images.",
            metavar="[=quick]",
            bare="full",
        ),
    ] = None
    format: Annotated[
        Literal["text", "concise", "json", "github", "sarif"], Option("Format of the findings.")
    ] = "text"
    strict: Annotated[bool, Option("Warnings count as errors.", ("--strict",))] = False
    plugins: Plugins = ()
    quiet: Annotated[bool, Option("Print the findings only, no summary.", ("--quiet", "-q"))] = False
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """Show every layer that can be mimicked: path, shape, stride, parameters, cost. Only --pairs reads data."""

    spec: Annotated[str, Argument("A spec, a file with networks alone, or a list of modules.", "FILE")]
    changes: Changes = ()
    depth: Annotated[int | None, Option("Show layers down to this depth; 0: the outermost only.")] = None
    filter: Annotated[str | None, Option("Show layers whose path matches: 'layer3*'.", metavar="PATTERN")] = (
        None
    )
    type: Annotated[str | None, Option("Show layers of a type: Conv2d.", metavar="TYPE")] = None
    net: Annotated[str | None, Option("Show one network: net, teacher0.", metavar="NAME")] = None
    input: Annotated[
        str | None, Option("Size of the input images; else the size that the data has.", metavar="CxHxW")
    ] = None
    pairs: Annotated[
        bool,
        Option(
            "Show pairs of layers that fit, and a mimic block to paste, weighted by one batch of the data.",
            ("--pairs",),
        ),
    ] = False
    format: Annotated[Literal["table", "json", "yaml"], Option("Format of the output.")] = "table"
    plugins: Plugins = ()
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDataOptions:
    """Compose a small data set: garments on canvases (fashion-scenes) or cut-out photographs on photographs."""

    kind: Annotated[
        Literal["fashion-scenes", "stamp-scenes"],
        Argument(
            "The data set to make: fashion-scenes, stamp-scenes. For example `kdcli make-data stamp-scenes data/scenes"
            " --task detection`.",
            "KIND",
        ),
    ]
    folder: Annotated[Path, Argument("Folder to write images and labels into.", "DIR")]
    seed: Annotated[int, Option("The same seed gives the same bytes.", minimum=0)] = 0
    root: Annotated[
        Path | None,
        Option(
            "Folder with Fashion-MNIST's idx files, or, of stamp-scenes, that the packages of photographs were"
            " extracted into; else where Debian's packages have them.",
            metavar="DIR",
        ),
    ] = None
    num_train: Annotated[
        int | None, Option("Number of images to train on; else 1500, of stamp-scenes 2400.", minimum=1)
    ] = None
    num_test: Annotated[
        int | None, Option("Number of images to test on; else 300, of stamp-scenes 800.", minimum=1)
    ] = None
    num_val: Annotated[
        int | None, Option("stamp-scenes: number of images to choose settings on; else none.", minimum=0)
    ] = None
    unlabelled: Annotated[
        int | None, Option("stamp-scenes: number of training images more, without labels.", minimum=0)
    ] = None
    unlabelled_stamps: Annotated[
        tuple[Path, ...],
        Option("stamp-scenes: folder of cut-outs of no class, for every second of those.", metavar="DIR"),
    ] = ()
    task: Annotated[
        Literal["classification", "detection", "segmentation"] | None,
        Option(
            "stamp-scenes: classification (folders, one object an image), detection (COCO's format) or"
            " segmentation (masks as PNG); else classification."
        ),
    ] = None
    size: Annotated[
        int | None, Option("stamp-scenes: height and width of the images; else 96.", minimum=16)
    ] = None
    classes: Annotated[
        tuple[str, ...],
        Option(
            "stamp-scenes: a folder of stamps as a class, `food/fruit` or `name=food/fruit`; repeat it for each."
            " Else eight of the package, or every folder of --stamps.",
            ("--class",),
            metavar="FOLDER",
        ),
    ] = ()
    stamps: Annotated[
        Path | None, Option("stamp-scenes: folder of your own cut-outs (PNG with alpha).", metavar="DIR")
    ] = None
    backgrounds: Annotated[
        Path | None, Option("stamp-scenes: folder of your own photographs to lay them on.", metavar="DIR")
    ] = None
    force: Annotated[bool, Option("Overwrite what `make-data` has made there already.", ("--force",))] = False
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Write report.html into a run folder: curves, costs, classes, calibration, disagreements, feature maps."""

    spec: RunOrSpec
    changes: Changes = ()
    quick: Annotated[
        bool, Option("Show curves and what was collected before; run no network.", ("--quick",))
    ] = False
    baseline: Annotated[
        Path | None,
        Option("Lay another run's student beside it: the same one trained alone, say.", metavar="RUN"),
    ] = None
    device: Device = None
    plugins: Plugins = ()
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """Put runs side by side; runs that differ by seed alone become mean and spread."""

    runs: Annotated[tuple[Path, ...], Argument("Run folders.", "RUN...")]
    format: Annotated[Literal["text", "json", "csv", "md", "html"], Option("Format of the output.")] = "text"
    picture: Annotated[
        Path | None, Option("Draw all runs into FILE: .svg, .png or .pdf.", metavar="FILE")
    ] = None
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Export the student alone, and prove that the file gives the student's outputs."""

    spec: RunOrSpec
    format: Annotated[Literal["safetensors", "onnx", "torch-export"], Option("Format of the file.")] = "onnx"
    output: Annotated[
        Path | None, Option("File to write; else one in the run folder.", ("--output", "-o"), metavar="FILE")
    ] = None
    changes: Changes = ()
    weights: Weights = None
    weight_key: WeightKey = None
    tolerance: Annotated[
        float,
        Option(
            "Largest difference allowed between the file's outputs and the student's, as a share of the largest."
        ),
    ] = 1e-4
    input_size: Annotated[
        str | None,
        Option("A detector's input size; else one that holds the first test images.", metavar="HxW"),
    ] = None
    plugins: Plugins = ()
    traceback: Traceback = False


Teacher = Annotated[
    str | None,
    Option(
        "The teacher and its weights: t.pth@torchvision.resnet18, published weights by name, or a run folder.",
        metavar="WEIGHTS@NETWORK",
    ),
]
Data = Annotated[
    Path | None,
    Option(
        "The images: a folder a class, with or without train and val above them; COCO's annotations; or images alone.",
        metavar="DIR",
    ),
]
Labels = Annotated[bool, Option("Read class folders as labels, or as images without labels.")]
Out = Annotated[
    Path | None,
    Option("Folder for the spec and its run; else distilled_ and the images' folder.", metavar="DIR"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """Distil in one line: choose a recipe for teacher, student and images, write its spec, train, measure, report."""

    teacher: Teacher = None
    student: Annotated[
        str | None,
        Option(
            "The student: a network of torchvision, timm, kdcli or your own, WEIGHTS@NETWORK, or a spec whose `net` it"
            " is.",
            metavar="NETWORK",
        ),
    ] = None
    data: Data = None
    out: Out = None
    labels: Labels = True
    changes: Changes = ()
    overwrite: Annotated[bool, Option("Start over in a folder that holds a spec already.")] = False
    gpus: Gpus = None
    device: Device = None
    nproc: Nproc = None
    plugins: Plugins = ()
    offline: Offline = False
    quiet: Annotated[bool, Option("Print warnings and the last lines only.")] = False
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """Ask a student about image files: classes with their probability, or boxes; from a run or an exported file."""

    spec: Annotated[
        str, Argument("A run folder, its spec, or a file: .safetensors, .onnx, .pt2.", "RUN|FILE", "spec")
    ]
    images: Annotated[
        tuple[str, ...], Argument("Image files, folders of them, or patterns: 'photos/*.jpg'.", "IMAGE...")
    ] = ()
    top: Annotated[
        int | None,
        Option(
            "How many classes of each image; else 3. Of a detector: boxes; else all.", metavar="K", minimum=1
        ),
    ] = None
    min_score: Annotated[
        float, Option("Detectors only: leave out boxes with a lower score.", metavar="SCORE")
    ] = 0.3
    format: Annotated[Literal["table", "json"], Option("table or json.")] = "table"
    pictures: Annotated[
        Path | None, Option("Draw each image with its boxes, or its class, into this folder.", metavar="DIR")
    ] = None
    weights: Weights = None
    weight_key: WeightKey = None
    plugins: Plugins = ()
    traceback: Traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """List the sample specs, or copy one to start from, with its weights and the editor's schema."""

    name: Annotated[str | None, Argument("A sample; without it all are listed.", complete="sample")] = None
    folder: Annotated[Path | None, Argument("Folder to copy into; else the working directory.", "[DIR]")] = (
        None
    )
    student: Annotated[
        str | None,
        Option(
            "Another student of foundation, foundation_two_teachers or finetune: mobilenetv4, convnext, repvit,"
            " fastvit, resnet, or a name of timm's. With --from as `kdcli distill` has it.",
            metavar="NAME",
        ),
    ] = None
    after: Annotated[
        Path | None,
        Option(
            "finetune: the spec of the run without labels whose student it begins with; else foundation.yaml in the"
            " folder.",
            metavar="SPEC",
        ),
    ] = None
    force: Annotated[bool, Option("Overwrite a copy that is there already.", ("--force",))] = False
    recipe: Annotated[
        bool,
        Option(
            "Write the spec that `kdcli distill` would train with the same --teacher, --student and --data; without"
            " --teacher, one that fine-tunes the student's published weights.",
            ("--from",),
        ),
    ] = False
    teacher: Teacher = None
    data: Data = None
    out: Out = None
    labels: Labels = True
    overwrite: Annotated[bool, Option("With --from: write over a spec that is there.", ("--overwrite",))] = (
        False
    )
    plugins: Plugins = ()
    traceback: Traceback = False
