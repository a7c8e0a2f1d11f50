"""The whole YAML language as frozen typed models; parse.py brings a text into this shape.

Field names are the YAML's keys. Three shapes differ from the text, and parse.py makes them: `teacher*` keys become
`teachers`, one job becomes `jobs` with one entry, and its keys are sorted into `losses`, `options` and `teachers`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kdcli.spec.field_types import (
    MOST,
    MOST_TEMPERATURE,
    Budget,
    Epochs,
    Many,
    NonNegativeInt,
    Pixels,
    Positive,
    PositiveInt,
    SoftmaxTemperature,
    TeacherClass,
    Whole,
)
from kdcli.spec.field_types import Component as Component
from kdcli.spec.field_types import Model as Model
from kdcli.spec.runtime import Compile as Compile
from kdcli.spec.runtime import Runner as Runner
from kdcli.spec.runtime import Runtime as Runtime
from kdcli.spec.tables import Standardization


class ModuleSpec(Model):
    """One module of a network: a name, a type, its arguments and the module it follows.

    outputs: names for what a whole model returns as a tuple or list, in order; `_` drops an entry.
    """

    name: str
    type: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    prev: str | None = None
    outputs: Many[str] | None = None

    @property
    def headless(self) -> bool:
        """Whether it is a network of timm without a head: what it returns is a vector that is no class's."""
        return self.type.startswith("timm.") and self.kwargs.get("num_classes") == 0


Network = Many[ModuleSpec]


# mimic


class AdapterSpec(Model):
    """A trainable map from student to teacher feature: `auto` is written {type: auto}."""

    type: str
    kwargs: dict[str, Any] = Field(default_factory=dict)


class Temperature(Model):
    """A temperature that is learned (CTKD, AAAI'23): T = start + range * sigmoid(theta)."""

    learned: Literal[True] = True
    start: SoftmaxTemperature = 1.0
    range: Annotated[float, Field(ge=-MOST_TEMPERATURE, le=MOST_TEMPERATURE)] = 20.0
    cosine_epochs: PositiveInt = 10


class LossSpec(Model):
    """One loss of a job: type, arguments, options; `allow_negative`: weights may be below 0, so that it rises."""

    type: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    adapter: AdapterSpec | None = None
    start_iter: NonNegativeInt | None = None
    end_iter: NonNegativeInt | None = None
    decay: Literal["linear", "cosine"] | None = None
    standardize: bool | Standardization | None = None
    temperature: SoftmaxTemperature | Temperature | None = None
    over_pairs: Literal["mean", "sum"] | None = None
    allow_negative: bool | None = None


class TeacherInput(Model):
    """Pixels of another size or normalisation for one teacher, made from the student's; else as its weights state."""

    size: Pixels | Many[Pixels] | None = None
    mean: Many[Annotated[float, Field(ge=-(10**6), le=10**6)]] | None = None
    std: Many[Annotated[float, Field(gt=0, le=10**6)]] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None


class Cache(Model):
    """A disk cache of what the jobs need of a teacher (kdcli.training.caches).

    dir: by default `cache` in the run folder. views: after so many epochs the augmentations come again.
    dtype: of what is stored. topk: of the logits, only so many of the largest are stored.
    """

    dir: str | None = None
    views: PositiveInt = 1
    dtype: Literal["float32", "float16"] = "float32"
    topk: PositiveInt | None = None
    limit_gb: Positive = 50.0


class LayoutSpec(Model):
    """How features are read whose layout kdcli can't find out.

    prefix: tokens before the patches (class, distillation, registers); 0 where nothing is said. grid: rows and columns
    of the patches. channels: of a map, the axis behind the batch (`first`) or the last. What it doesn't fit ignores it.
    """

    prefix: NonNegativeInt | None = None
    grid: Many[PositiveInt] | None = None
    channels: Literal["first", "last"] | None = None


class JobTeacher(Model):
    """What a job says of one teacher.

    classes: of a teacher with other classes than the data, the one for each class of the data, by number or by
    the name that its file gives: in the data's order, or a mapping from the data's names. weight_key: where in the
    file `teacher_weight` the weights lie, `a.b`. weight_order: they are read in their order, not by their names.
    """

    mimic_name: Many[str] = ()
    teacher_weight: str | None = None
    weight_key: str | None = None
    weight_order: bool | None = None
    teacher_bn_mode: Literal["eval", "train"] = "eval"
    allow_random: bool = False
    allow_weak_teacher: bool = False
    classes: Many[TeacherClass] | dict[str, TeacherClass] | None = None
    input: TeacherInput | None = None
    cache: Cache | None = None
    layout: LayoutSpec | None = None


class JobStudent(Model):
    """What a job says of the student."""

    mimic_name: Many[str] = ()
    layout: LayoutSpec | None = None


class Job(Model):
    """One mimic job: a method, its losses, whose features.

    allow_negative: `loss_weight` may be below 0; each loss says so for itself. standardize: logits (true), or features.
    allow_strong_pull: train although a loss pulls over 10,000 times as hard as the task, out of scale to the weights.
    """

    mimic_ins_type: str = "base"
    loss_weight: float = 1.0
    allow_negative: bool | None = None
    allow_strong_pull: bool = False
    warm_up_iters: Annotated[Whole, Field(ge=-1, le=MOST)] = -1
    losses: dict[str, LossSpec] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    teachers: dict[str, JobTeacher] = Field(default_factory=dict)
    student: JobStudent = Field(default_factory=JobStudent)
    adapter: AdapterSpec | None = None
    layout: LayoutSpec | None = None
    start_iter: NonNegativeInt = 0
    end_iter: NonNegativeInt | None = None
    decay: Literal["linear", "cosine"] | None = None
    standardize: bool | Standardization = False
    standardize_images: PositiveInt = 1024
    temperature: SoftmaxTemperature | Temperature | None = None
    teacher_weighting: Literal["average", "entropy", "confidence"] = "average"


class ParameterGroup(Model):
    """Settings of the weights or the biases of one kind of layer."""

    type: Literal["weight", "bias"]
    kwargs: dict[str, float] = Field(default_factory=dict)


class LayerDecay(Model):
    """Learning rates that fall with the distance from the head: base_lr * value ** (layers - layer)."""

    type: Literal["vit_base"]
    value: Annotated[float, Field(gt=0, le=1)]
    base_lr: Positive


class ParameterGroups(Model):
    """Other settings of some parameters, as United-Perception chooses them: by kind of layer, by name.

    bn_w ... linear_b: of BatchNorm2d, LayerNorm and Linear; `type` says weight or bias. nodecay: parameters without
    weight decay, whose names hold one of these texts; `ndim_is1` means all with one dimension. The kind of layer wins.
    """

    bn_w: ParameterGroup | None = None
    bn_b: ParameterGroup | None = None
    ln_w: ParameterGroup | None = None
    ln_b: ParameterGroup | None = None
    linear_w: ParameterGroup | None = None
    linear_b: ParameterGroup | None = None
    nodecay: Many[str] = ()
    layer_decay: LayerDecay | None = None


class OptimizerSpec(Model):
    """An optimizer by name. pconfig: which parameters have another learning rate or weight decay."""

    type: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    pconfig: ParameterGroups | None = None


class SchedulerSpec(Model):
    """A scheduler of torch.optim.lr_scheduler by name, with United-Perception's warm-up.

    warmup_register_type: `base` (the default) multiplies the learning rate by the processes and the batch size.
    warmup_epochs: the warm-up takes so many epochs, may be a fraction, and `warmup_iter` steps at least.
    """

    type: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    warmup_iter: NonNegativeInt = 0
    warmup_epochs: Annotated[float, Field(ge=0, le=MOST)] | None = None
    warmup_type: Literal["linear", "exp", "constant"] = "exp"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    warmup_register_type: Literal["base", "no_scale_lr"] | None = None

    def warmup(self, steps_per_epoch: int) -> int:
        """The steps of the warm-up."""
        return max(self.warmup_iter, int((self.warmup_epochs or 0) * steps_per_epoch))


class StageSpec(Model):
    """One of several stages of a run."""

    name: str
    max_iter: PositiveInt | None = None
    max_epoch: Epochs | None = None
    jobs: Many[str] | None = None
    task_loss: bool | None = None
    train: Many[str] | None = None
    optimizer: OptimizerSpec | None = None
    lr_scheduler: SchedulerSpec | None = None


class Mimic(Model):
    """The mimic jobs, and the stages of the run. task_loss: by default false without labels (form/canonical.py)."""

    jobs: dict[str, Job]
    task_loss: bool = True
    stages: Many[StageSpec] = ()


# data


class DatasetKwargs(Model):
    """Arguments that every dataset takes; those of one dataset stay in model_extra."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    transformer: Many[Component] = ()
    evaluator: Component | None = None
    image_reader: Component | None = None


class DatasetSpec(Model):
    """A dataset by name."""

    type: str
    kwargs: DatasetKwargs = Field(default_factory=DatasetKwargs)


class BatchSamplerKwargs(Model):
    """How samples become batches; batch_size is per process."""

    batch_size: PositiveInt
    sampler: Component = Field(default_factory=lambda: Component(type="dist"))
    aspect_grouping: Many[Annotated[float, Field(gt=0, le=2**16)]] = (1.0,)
    drop_last: bool = False


class BatchSampler(Model):
    """A batch sampler by name."""

    type: Literal["base", "aspect_ratio_group"] = "base"
    kwargs: BatchSamplerKwargs


class DataLoaderKwargs(Model):
    """How batches are loaded."""

    num_workers: Annotated[NonNegativeInt, Field(le=1024)] | Literal["auto"] = "auto"
    pin_memory: bool | None = None
    alignment: Pixels = 1
    batch_fn: Component | None = None
    in_memory: bool | None = None
    on_bad_sample: Literal["stop", "skip"] = "stop"
    bad_sample_budget: Budget = 100


class DataLoader(Model):
    """A data loader by name."""

    type: Literal["base", "cls_base"] = "base"
    kwargs: DataLoaderKwargs = Field(default_factory=DataLoaderKwargs)


class DataPart(Model):
    """The training or the test side of the data."""

    dataset: DatasetSpec
    batch_sampler: BatchSampler
    dataloader: DataLoader = Field(default_factory=DataLoader)


class Probe(Model):
    """A small labelled set that frozen features are measured on: by k-NN, and by a linear classifier fitted to `train`.

    freq: so many epochs lie between two measurements, by default each evaluation has one. k, temperature: of k-NN.
    feature: which layer of the student is read, or of each network by its name (`student`, `teacher0`); by default
    the input of its classifier.
    """

    train: DataPart
    test: DataPart
    freq: PositiveInt | None = None
    k: PositiveInt = 20
    temperature: SoftmaxTemperature = 0.07
    feature: str | dict[str, str] | None = None

    def feature_of(self, network: str) -> str | None:
        """The layer of a network that is read; None where the default is."""
        if isinstance(self.feature, dict):
            return self.feature.get(network)
        return self.feature if network == "student" else None


class Dataset(Model):
    """Both sides of the data, and a labelled set to probe features on.

    hold_out: this share of the training data is left out of training and tested on, in place of the test data; `test`
    is then the training data with the transforms, the evaluator and the batches of the test side (form/shared_data.py).
    """

    train: DataPart
    test: DataPart
    probe: Probe | None = None
    hold_out: Annotated[float, Field(gt=0, lt=1)] | None = None

    @property
    def parts(self) -> dict[tuple[str, ...], DataPart]:
        """Every part by its path below `dataset`: ("train",), ("test",), and those of the probe."""
        sides: dict[tuple[str, ...], DataPart] = {("train",): self.train, ("test",): self.test}
        if self.probe is not None:
            sides |= {("probe", "train"): self.probe.train, ("probe", "test"): self.probe.test}
        return sides


# training


class EmaKwargs(Model):
    """Decay and warm-up of the moving average.

    The decay in force is decay ** inner_T at most. inner_T: `linear` averages at every inner_T-th step.
    warmup: at step i of `linear`, from 0, the decay is (1 + i) / (warmup + i) at most.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    inner_T: PositiveInt = 1
    warmup: PositiveInt = 1


class Ema(Model):
    """A moving average of the student, used for evaluation and export.

    `exp`: the decay rises from 0 as 1 - exp(-i / 2000) with step i. It may stand at the top level too.
    """

    enable: bool = True
    ema_type: Literal["linear", "exp"] = "linear"
    kwargs: EmaKwargs = Field(default_factory=EmaKwargs)


class Trainer(Model):
    """Length of the training, optimizer, and how often to test and save."""

    optimizer: OptimizerSpec
    lr_scheduler: SchedulerSpec | None = None
    max_epoch: Epochs | None = None
    max_iter: PositiveInt | None = None
    test_freq: PositiveInt = 1
    save_freq: PositiveInt = 1
    save_every_minutes: Positive | None = None
    only_save_latest: bool = False
    keep_checkpoints: PositiveInt = 3
    log_freq: PositiveInt = 20
    ema: Ema | None = None
    accumulate_steps: PositiveInt = 1
    clip_grad_norm: Positive | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    nonfinite_budget: NonNegativeInt = 10
    on_collapse: Literal["warn", "stop"] = "warn"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    loggers: Many[str] = ()


class Saver(Model):
    """The run folder, pretrained weights, and a folder for the results as `<run>.json`.

    weight_key: where in the file `pretrain_model` the weights lie, `a.b`. weight_order: read in order, not by name.
    """

    save_dir: str | None = None
    results_dir: str | None = None
    auto_resume: bool = False
    resume_model: str | None = None
    pretrain_model: str | None = None
    weight_key: str | None = None
    weight_order: bool | None = None


class Hook(Component):
    """A hook of United-Perception by name."""


class Spec(Model):
    """A whole spec. sweep: what `kdcli sweep` tries, by key (kdcli/spec/sweep.py); no part of a run."""

    net: Network
    dataset: Dataset
    trainer: Trainer
    runtime: Runtime = Field(default_factory=Runtime)
    teachers: dict[str, Network] = Field(default_factory=dict)
    mimic: Mimic | None = None
    saver: Saver = Field(default_factory=Saver)
    hooks: Many[Hook] = ()
    sweep: dict[str, Any] | None = None

    @property
    def distils(self) -> bool:
        """Whether the run distils; parse.py has settled the runner by then."""
        return self.runtime.runner is not None and self.runtime.runner.type == "kd"
