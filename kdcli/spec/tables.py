"""How a name in the spec maps to code: a 'module:attribute' string that nobody imports too early.

A loss, a mimic method and a task have a record beside their code: what is true of them and can be asked
without torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from kdcli.spec.ranges import Count, CountOrNone, NonNegative, Positive, Range, Share, ShareBelowOne


@dataclass(frozen=True, slots=True)
class Target:
    """The code behind one name of a table.

    path: 'package.module:attribute'. preset: keyword arguments that the name itself fixes
    (resnet18 is ResNet with depth 18); the user cannot give them. own: whether it is a plugin's.
    """

    path: str
    preset: Mapping[str, Any] = field(default_factory=dict, hash=False)
    own: bool = False

    def load(self) -> Any:
        """Import the module and return the attribute."""
        module, _, attribute = self.path.partition(":")
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found


Table = Mapping[str, Target]

Kind = Literal["logit", "feature", "relational", "teacher-free"]
Takes = Literal["logits", "vector", "map", "tokens", "any"]
Place = Literal["logits", "pooled vector", "middle stage", "last stage", "stages", "before ReLU"]
"""Where a layer lies in a network of three stages; `before ReLU`: what goes into the last ReLU of each stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss(Target):
    """One loss: where its code is, and what is true of it that its signature does not say."""

    kind: Kind
    """What it compares: logits, features, how the samples of a batch relate, or nothing of a teacher."""
    weight: float = 1.0
    """What it is multiplied by where the spec gives no `loss_weight`: the authors' own choice."""
    takes: Takes = "any"
    """The only layout of a feature that it accepts; `any`: several, which its own checks tell apart."""
    unlike_shapes: bool = False
    """Takes features of unlike shapes without an adapter, though it is not made from their shapes."""
    before_relu: bool = False
    """Takes what goes into a ReLU, of both networks."""
    softened: bool = False
    """Its `T` softens a distribution: `temperature` of a job is meant for it."""
    whole_list: bool = False
    """Takes the features of a job as two lists, instead of pair by pair."""
    mean_over_pairs: bool = False
    """Several pairs are averaged, as in United-Perception; else they are added up."""
    divides_by_mask: bool = False
    """Divides by the sum of the mask over all elements, unless `batch_mean: true`."""
    rectifies: bool = False
    """Passes both sides through a ReLU first: negative values are lost."""
    normalizes: bool | str = False
    """Normalises features itself, always or where the kwarg of this name says so: an adapter before it has no norm."""
    adapter: str | None = None
    """The adapter from the student's feature to the teacher's where the spec names none; not between logits."""
    trains_student: bool = True
    """False where it learns from the teacher alone."""
    replaces_end: bool = False
    """Gives the student another end, from the tapped map to logits (`StatefulLoss.student_end`)."""
    prepares: bool = False
    """Has a pass over the training data before it trains (`StatefulLoss.prepare`)."""
    labels_unless: tuple[str, str] | None = None
    """The kwarg, and its value, with which it does without the labels that it asks for."""
    takes_over: str | None = None
    """The loss of an earlier stage that trains what this one starts from (`StatefulLoss.inherit`)."""
    example: tuple[Place, ...] = ()
    """The layers that the block of `kdcli methods` names; none: `logits`, or `last stage` for a feature."""
    teacher_example: tuple[Place, ...] = ()
    """The teacher's layers in that block, where they are others than the student's."""
    example_kwargs: str = ""
    """The `kwargs` in that block, as YAML, where these layers ask for some."""


LossTable = Mapping[str, Loss]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """The options of a mimic method that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLoss:
    """A loss that a mimic method computes where the spec does not name another: its type, its kwargs."""

    type: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodExample:
    """What `kdcli methods` prints as the `mimic` block of a method.

    networks: the comment above it: which networks the block is for. student, teacher: layers of each; no
    layers of a teacher where the job has none. losses: names of those that stand under `cfgs`.
    """

    networks: str
    student: tuple[str, ...]
    teacher: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Method(Target):
    """One mimic method: what `cfgs` of its job may hold, and how its layers are named.

    A method of a user's package is a class with such a record as its `kdcli_record`, without a path.

    losses: its own, by name; United-Perception's rule holds: kwargs of the spec go over the defaults where the
    type is the same, and stand alone where it is not. options: a frozen dataclass of what `cfgs` may hold
    beside losses, each field made by `option`. extra_losses: whether `cfgs` may name further losses, and then
    those alone count. paired: whether student and teachers name equally many layers. peers: whether networks
    of `net` teach each other, so that no loss asks for a teacher. example: None for the one of its first loss.
    """

    path: str = ""
    losses: Mapping[str, OwnLoss] = field(default_factory=dict, kw_only=True, hash=False)
    options: type[Any] = field(default=NoOptions, kw_only=True)
    extra_losses: bool = field(default=False, kw_only=True)
    paired: bool = field(default=True, kw_only=True)
    peers: bool = field(default=False, kw_only=True)
    example: MethodExample | None = field(default=None, kw_only=True)

    def options_of(self, given: Mapping[str, Any]) -> Any:
        """The options of one job, as an object of the class `options`.

        given: as the spec says them; an option that is given nothing has its default, a list becomes a tuple
        where the field is one.
        """
        hints = get_type_hints(self.options, include_extras=True)
        return self.options(
            **{
                name: tuple(value) if isinstance(value, list) and _is_tuple(hints.get(name)) else value
                for name, value in given.items()
                if value is not None
            }
        )


def option(default: Any, meaning: str, code: str | None = None) -> Any:
    """A field of a mimic method's options.

    meaning: what `kdcli methods` and the schema say of it. code: of the error for a value that is none of its
    choices or out of its range; None for the codes of arguments in general.
    """
    return field(default=default, metadata={"meaning": meaning, "code": code})


def _is_tuple(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return _is_tuple(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return any(_is_tuple(part) for part in get_args(hint))
    return hint is tuple or get_origin(hint) is tuple


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """What is true of one task and can be asked without its code.

    target: its implementation (kdcli.tasks.task.Task). datasets: types of data sets that hold its truth.
    words: parts of `runtime.task_names` that name it. not_compiled, not_cached, not_probed: why its networks can't
    be compiled, why what its teachers show can't be cached, and why its features can't be probed; None where they can.
    """

    target: Target
    datasets: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    not_compiled: str | None = None
    not_cached: str | None = None
    not_probed: str | None = None


OPTIMIZERS = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FusedFP16AdamW",
    "FusedFP16SGD",
    "LAMB",
    "LARS",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)
"""LBFGS is not among them: it asks for the loss several times a step; nor is SparseAdam, which takes no dense
gradients."""

SAME_OPTIMIZERS: Mapping[str, str] = {"FusedFP16AdamW": "AdamW", "FusedFP16SGD": "SGD"}
"""United-Perception's optimizers of another library, and torch's that makes the same steps."""

SCHEDULERS = (
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineLREpochScheduler",
    "CyclicLR",
    "EpochBasedCosineAnnealingLR",
    "ExponentialLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "StepLR",
    "polylr",
)
"""Those whose arguments are data: no functions, no schedulers of schedulers."""

OPTIMIZER_ARGUMENTS: Mapping[str, Any] = {
    "alpha": ShareBelowOne,
    "beta2_decay": Annotated[float, Range(at_most=0)],
    "betas": tuple[ShareBelowOne, ShareBelowOne],
    "d": Annotated[float, Range(at_least=1)],
    "dampening": Share,
    "eps": Positive,
    "eta": NonNegative,
    "etas": tuple[Annotated[float, Range(more_than=0, less_than=1)], Annotated[float, Range(more_than=1)]],
    "initial_accumulator_value": NonNegative,
    "lambd": NonNegative,
    "lr": NonNegative,
    "lr_decay": NonNegative,
    "max_grad_norm": Positive,
    "momentum": ShareBelowOne,
    "momentum_decay": NonNegative,
    "ns_steps": Count,
    "rho": Share,
    "step_sizes": tuple[Positive, Positive],
    "t0": NonNegative,
    "weight_decay": NonNegative,
}
"""The arguments of torch's optimizers, by name, whose values have a range: torch checks few of them."""

OPTIMIZER_EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    "ASGD": {"alpha": Positive},
    "Adafactor": {"eps": tuple[NonNegative | None, Positive]},
}
"""The arguments that mean something else in one optimizer."""

Epochs = Annotated[float, Range(more_than=0)]
"""A length that kdcli turns into steps; it may end within an epoch."""

SCHEDULER_ARGUMENTS: Mapping[str, Any] = {
    "T_0": Epochs,
    "T_max": Epochs,
    "T_mult": Count,
    "base_lr": NonNegative,
    "base_momentum": ShareBelowOne,
    "cooldown": CountOrNone,
    "div_factor": Positive,
    "end_factor": Share,
    "epochs": Count | None,
    "eps": NonNegative,
    "eta_min": NonNegative,
    "factor": Share,
    "final_div_factor": Positive,
    "gamma": Positive,
    "max_epoch": Epochs | None,
    "max_lr": Positive,
    "max_momentum": ShareBelowOne,
    "milestones": list[Epochs],
    "min_lr": NonNegative,
    "patience": CountOrNone,
    "pct_start": Share,
    "power": NonNegative,
    "start_factor": Annotated[float, Range(more_than=0, at_most=1)],
    "step_size": Epochs,
    "step_size_down": Count | None,
    "step_size_up": Count,
    "steps_per_epoch": Count | None,
    "threshold": NonNegative,
    "total_iters": Epochs,
    "offset_epoch": CountOrNone,
    "total_steps": Count | None,
    "warm_epoch": NonNegative,
    "warmup_iter": CountOrNone,
}
"""The same of torch's schedulers; `warmup_iter` is kdcli's own, of the cosine."""

SCHEDULER_EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    "EpochBasedCosineAnnealingLR": {"eta_min": Share},
    "ReduceLROnPlateau": {"factor": Annotated[float, Range(more_than=0, less_than=1)]},
    "polylr": {
        "max_epoch": Annotated[float, Range(at_least=-1)],
        "max_iter": Annotated[int, Range(at_least=-1)],
    },
}

ADAPTIVE = frozenset(
    {"Adam", "AdamW", "Adamax", "FusedFP16AdamW", "LAMB", "Muon", "NAdam", "RAdam", "RMSprop", "SparseAdam"}
)
"""Optimizers whose step is about as long as the learning rate, however large the gradient is."""

SETS_LR = frozenset({"CyclicLR", "OneCycleLR"})
"""Schedulers with a learning rate of their own: that of the optimizer is not used."""


def torch_arguments(name: str) -> Mapping[str, Any]:
    """The types with ranges of the arguments of one of torch's optimizers or schedulers, by argument.

    Some of them are no arguments of this one.
    """
    if name in OPTIMIZERS:
        return {**OPTIMIZER_ARGUMENTS, **OPTIMIZER_EXCEPTIONS.get(name, {})}
    return {**SCHEDULER_ARGUMENTS, **SCHEDULER_EXCEPTIONS.get(name, {})} if name in SCHEDULERS else {}


HOOKS = ("auto_checkpoint", "auto_save_best", "train_val_logger")
"""United-Perception's hooks that kdcli serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Every name that a spec may use; torch-free.

    evaluators: a table, or names alone. plugins: packages whose code the command line allows.
    """

    losses: LossTable = field(default_factory=dict)
    mimickers: Mapping[str, Method] = field(default_factory=dict)
    modules: Table = field(default_factory=dict)
    adapters: Table = field(default_factory=dict)
    datasets: Table = field(default_factory=dict)
    transforms: Table = field(default_factory=dict)
    batch_fns: Table = field(default_factory=dict)
    image_readers: Table = field(default_factory=dict)
    samplers: Table = field(default_factory=dict)
    evaluators: Table | Collection[str] = field(default_factory=dict)
    tasks: Mapping[str, TaskRecord] = field(default_factory=dict)
    optimizers: Collection[str] = OPTIMIZERS
    schedulers: Collection[str] = SCHEDULERS
    hooks: Collection[str] = HOOKS
    plugins: Sequence[str] = ()


def task_of(records: Mapping[str, TaskRecord], task_names: str | None, dataset: str | None) -> str:
    """The name of the task that `runtime.task_names` or else the training data's type says; else the first.

    dataset: the type; None where there is no data.
    """
    words = task_names or ""
    named = [name for name, record in records.items() if any(word in words for word in record.words)]
    meant = [name for name, record in records.items() if dataset in record.datasets]
    return (named or meant or list(records))[0]
