"""Codes KD3xx: names that refer to something."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

REFERENCES: dict[str, Explanation] = {
    "KD301": Explanation(
        "no such teacher",
        "A job names a teacher for which the spec has no network.",
        "wrong: mimic: {teacher1: {...}} beside teacher0: [...]",
    ),
    "KD302": Explanation(
        "unequal numbers of layers",
        "Student and teacher layers are paired in order, so both lists have the same length.",
        "wrong: student [layer3, layer4], teacher [layer4]",
    ),
    "KD303": Explanation(
        "teacher without weights",
        "An untrained teacher teaches noise. Give its checkpoint, or say that it is meant.",
        "right: teacher0: {mimic_name: [...], teacher_weight: teacher.safetensors}",
    ),
    "KD304": Explanation(
        "one teacher, two settings",
        "A teacher is built once and serves several jobs; its weights and its mode are the same in all.",
        "right: the same teacher_weight in both jobs, or a second teacher",
    ),
    "KD305": Explanation(
        "stage of an unknown job",
        "A stage lists jobs by name; there is no such job under `mimic`.",
        "right: stages: [{name: hints, max_epoch: 5, jobs: [mimic_job0]}]",
    ),
    "KD306": Explanation(
        "unknown loss",
        "`type` under `cfgs` names a loss. `kdcli methods` lists them all.",
        "wrong: type: kl_lss\nright: type: kl_loss",
    ),
    "KD307": Explanation(
        "unknown mimic method",
        "`mimic_ins_type` names a method; `base` is the one for most losses. `kdcli methods` lists them all.",
        "wrong: mimic_ins_type: bse\nright: mimic_ins_type: base",
    ),
    "KD308": Explanation(
        "unknown module type",
        "A module's `type` is a name of kdcli, `torchvision.<model>`, `timm.<model>`, or own code as"
        " `package.module:attribute` with `--plugin package`.",
        "wrong: type: resnet81\nright: type: resnet18",
    ),
    "KD309": Explanation(
        "own code of a package that is no plugin of this run",
        "A spec is data: code of your own, `package.module:attribute`, is imported only where the command line names"
        " its package. A run folder records the packages it was started with (env.json), and they have to be named"
        " again by each command that opens it.",
        "kdcli train cfg.yaml --plugin my_package",
    ),
    "KD310": Explanation(
        "unknown dataset",
        "`dataset.type` names a dataset of kdcli, `torchvision.<Dataset>`, or own code as"
        " `package.module:attribute` with `--plugin package`.",
        "wrong: type: clss\nright: type: cls",
    ),
    "KD311": Explanation(
        "unknown transform",
        "A transform is one of kdcli's (United-Perception's names) or `torchvision.<Name>`.",
        "wrong: type: normalise\nright: type: normalize",
    ),
    "KD312": Explanation(
        "unknown batch function",
        "`batch_fn` mixes the samples of a batch: batch_mixup, batch_cutmix, batch_cutmixup.",
        "wrong: type: mixup\nright: type: batch_mixup",
    ),
    "KD313": Explanation(
        "unknown image reader",
        "`image_reader` says how files become pixels: fs_pillow or fs_opencv.",
        "wrong: type: pillow\nright: type: fs_pillow",
    ),
    "KD314": Explanation(
        "unknown sampler",
        "`sampler` is `dist` (each process its own part) or `local`.",
        "wrong: type: distributed\nright: type: dist",
    ),
    "KD315": Explanation(
        "unknown evaluator",
        "`evaluator` says how the test set is judged: imagenet (top-k) or COCO.",
        "wrong: type: coco_map\nright: type: COCO",
    ),
    "KD316": Explanation(
        "unknown optimizer",
        "An optimizer is a class of torch.optim, by its exact name, or LAMB or LARS.",
        "wrong: type: sgd\nright: type: SGD",
    ),
    "KD317": Explanation(
        "unknown scheduler",
        "A scheduler is a class of torch.optim.lr_scheduler, by its exact name, or one of United-Perception's.",
        "wrong: type: MultistepLR\nright: type: MultiStepLR",
    ),
    "KD318": Explanation(
        "unknown adapter",
        "An adapter maps a student feature to a teacher feature; `auto` chooses by the real shapes.",
        "right: adapter: auto",
    ),
    "KD319": Explanation(
        "method without this loss or option",
        "A mimic method has its own losses and options under `cfgs`; this one is not among them and would"
        " be ignored.",
        "wrong: mimic_ins_type: FRS, cfgs: {neck_los: {...}}\nright: cfgs: {neck_loss: {...}}",
    ),
    "KD320": Explanation(
        "unknown argument",
        "`kwargs` go to the code by name; it takes no argument of this name.",
        "wrong: kwargs: {temp: 4}\nright: kwargs: {T: 4}",
    ),
    "KD321": Explanation(
        "missing argument",
        "The code cannot be built without this argument.",
        "right: type: base_cls_head, kwargs: {num_classes: 10}",
    ),
    "KD322": Explanation(
        "argument of the wrong type",
        "The argument, or the option of a mimic method, takes another kind of value.",
        "wrong: kwargs: {T: four}\nright: kwargs: {T: 4}",
    ),
    "KD323": Explanation(
        "T and temperature",
        "`temperature` is another name for `T`; both at once leave open which counts.",
        "right: kwargs: {T: 4}",
    ),
    "KD324": Explanation(
        "prev names no earlier module",
        "`prev` gives a module the widths of an earlier one in the same list.",
        "wrong: neck before backbone, with prev: backbone",
    ),
    "KD325": Explanation(
        "module name twice",
        "Modules are found by name (layer paths, prev, overrides), so names differ within a network.",
        "wrong: two modules called head",
    ),
    "KD326": Explanation(
        "class indices beside mixed labels",
        "With mixup or cutmix a sample has no one class, but this loss asks for class indices; it would learn"
        " from a label that is half wrong.",
        "right: another loss (kd_loss), or no batch_fn",
    ),
    "KD327": Explanation(
        "loss without a teacher",
        "The loss compares with a teacher, but the job has none.",
        "right: mimic: {teacher0: {mimic_name: [...], teacher_weight: ...}, ...}",
    ),
    "KD328": Explanation(
        "argument out of range",
        "The argument is of the right kind, but the code can do nothing sensible with such a number: a"
        " temperature divides and is more than 0, a probability lies between 0 and 1. `kdcli methods NAME` tells"
        " the range of each argument of a loss.",
        "wrong: kwargs: {T: 0}\nright: kwargs: {T: 4}",
    ),
    "KD350": Explanation(
        "own loss or mimic method that is none",
        "A loss of your own is a function or an nn.Module class, a mimic method a subclass of `Mimicker`. What they"
        " may say of themselves in `kdcli_record` are the fields of `Loss` and `Method` in kdcli/spec/tables.py.",
        "right: huber.kdcli_record = {'kind': 'feature', 'takes': 'map'}",
    ),
    "KD351": Explanation(
        "own loss or mimic method without a record",
        "What is true of a loss beside its signature (what it compares, which features it takes) is said in its"
        " `kdcli_record`. Without one it is derived from the signature: a loss with `teacher` compares features.",
        "right: huber.kdcli_record = {'kind': 'logit', 'takes': 'logits'}",
    ),
    "KD352": Explanation(
        "parameter of an own loss that nothing is bound to",
        "Positional parameters of a loss are bound by their names (student, teacher, labels ...), keyword-only ones"
        " are the options of the spec.",
        "wrong: def huber(x, y, beta=1.0)\nright: def huber(student, teacher, *, beta=1.0)",
    ),
    "KD353": Explanation(
        "optimizer of another library",
        "United-Perception takes FusedFP16SGD and FusedFP16AdamW from a library of its own. Their steps are those of"
        " SGD and AdamW; mixed precision is `runtime.precision`.",
        "right: type: SGD",
    ),
    "KD354": Explanation(
        "mixing among the transforms",
        "A transform sees one image, and mixing needs two: `torch_cutmix_mixup` is read as `batch_fn` of the"
        " dataloader, which mixes within a batch. One side of the data mixes once.",
        "right: dataloader: {kwargs: {batch_fn: {type: batch_cutmixup, kwargs: {mixup_alpha: 0.1, cutmix_alpha: 1.0,"
        " num_classes: 10}}}}",
    ),
    "KD390": Explanation(
        "unknown logger",
        "`trainer.loggers` names where else a run's numbers go: tensorboard, wandb, mlflow, or own code as"
        " package.module:Logger, which the command line must allow.",
        "right: loggers: [tensorboard]\nright: loggers: [mylab.logs:Logger], with --plugin mylab",
    ),
}
