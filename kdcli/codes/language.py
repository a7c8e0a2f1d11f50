"""Codes KD2xx: keys, values and overrides."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

LANGUAGE: dict[str, Explanation] = {
    "KD201": Explanation(
        "unknown top-level key",
        "A misspelt section would be ignored and the run would use defaults. Own building blocks carry an"
        " anchor (`flip: &flip ...`) or a name that starts with `x-`.",
        "wrong: trianer: {max_epoch: 10}\nright: trainer: {max_epoch: 10}",
    ),
    "KD202": Explanation(
        "unknown key",
        "A misspelt key would become a default without a word.",
        "wrong: trainer: {max_epochs: 10}\nright: trainer: {max_epoch: 10}",
    ),
    "KD203": Explanation(
        "missing key",
        "A key without which the section means nothing is absent, or was given nothing.",
        "wrong: optimizer: {kwargs: {lr: 0.1}}\nright: optimizer: {type: SGD, kwargs: {lr: 0.1}}",
    ),
    "KD204": Explanation(
        "wrong type",
        "The value is of another kind than the key takes. Numbers stand without quotes; YAML 1.2 knows"
        " `true` and `false`, while `on` and `yes` are text.",
        "wrong: pin_memory: yes\nright: pin_memory: true",
    ),
    "KD205": Explanation(
        "not one of the choices",
        "The key takes one of a few words.",
        "wrong: warmup_type: linaer\nright: warmup_type: linear",
    ),
    "KD206": Explanation(
        "number out of range",
        "The number is of the right kind, but makes no sense here.",
        "wrong: max_epoch: 0\nright: max_epoch: 1",
    ),
    "KD207": Explanation(
        "not an assignment",
        "After the spec come assignments `key.path=value`; the value is YAML.",
        "kdcli train cfg.yaml trainer.max_epoch=10 net.backbone.kwargs.out_layers=[4]",
    ),
    "KD208": Explanation(
        "override of something that is not there",
        "An element of a list is named by its index, its `name` or its `type`; the list has none like this.",
        "wrong: net.bakbone.kwargs.depth=18\nright: net.backbone.kwargs.depth=18",
    ),
    "KD209": Explanation(
        "override cannot be followed",
        "The path leads into a plain value, past the end of a list, or to a name that several elements bear.",
        "wrong: net.9.type=resnet18 (the net has two modules)",
    ),
    "KD210": Explanation(
        "runner kd without mimic",
        "`kd` distils; without `mimic` there is nothing to distil, and the run would be a plain training.",
        "right: mimic: {teacher0: {...}, student: {...}}, or runner: {type: base}",
    ),
    "KD211": Explanation(
        "mimic without runner kd",
        "United-Perception trains such a spec without distilling and says nothing. Say which is meant.",
        "right: runtime: {runner: {type: kd}}",
    ),
    "KD212": Explanation(
        "no length",
        "A training, or one of its stages, says neither `max_epoch` nor `max_iter`.",
        "right: trainer: {max_epoch: 100}",
    ),
    "KD213": Explanation(
        "jobs without mimic_as_jobs",
        "Several jobs stand under `mimic_jobN` keys and `mimic_as_jobs: true` says so; one without the other"
        " is half a change.",
        "right: mimic: {mimic_as_jobs: true, mimic_job0: {...}, mimic_job1: {...}}",
    ),
    "KD216": Explanation(
        "fp16 against precision",
        "`fp16: true` is United-Perception's way to say `precision: fp16`; both with different meanings"
        " cannot hold.",
        "right: runtime: {precision: bf16}",
    ),
    "KD217": Explanation(
        "warm-up given twice",
        "A warm-up key stands beside `kwargs` and inside, with different values.",
        "wrong: lr_scheduler: {type: MultiStepLR, warmup_iter: 500, kwargs: {milestones: [8], warmup_iter: 0}}",
    ),
    "KD218": Explanation(
        "ends before it starts",
        "A loss whose `end_iter` is not after its `start_iter` would never be in force.",
        "wrong: start_iter: 100, end_iter: 50",
    ),
    "KD219": Explanation(
        "stage name twice",
        "A stage's name stands in the checkpoint; two stages of one name could not be told apart on resume.",
        "right: stages: [{name: hints, ...}, {name: logits, ...}]",
    ),
    "KD220": Explanation(
        "empty network",
        "A network needs at least one module.",
        "wrong: net: []",
    ),
    "KD221": Explanation(
        "nothing to fold",
        "A BatchNorm that normalises by its batch has no fixed scale that could go into a convolution.",
        "wrong: runtime: {fold_bn: true} with teacher0: {teacher_bn_mode: train}",
    ),
    "KD222": Explanation(
        "nothing to compile",
        "Detectors and sharded networks change what they compute from step to step; torch.compile gains nothing there.",
        "wrong: runtime: {compile: true} with trainer: {parallel: fsdp}",
    ),
    "KD223": Explanation(
        "number that cannot be computed with",
        "NaN and infinity turn every sum that they enter into themselves, and nothing is learnt. Infinity is"
        " also what a number beyond 1.8e308 becomes; whole numbers have 64 bits. A limit that shall not hold is"
        " left out.",
        "wrong: std: [.inf]\nright: std: [0.5]",
    ),
    "KD225": Explanation(
        "moving average given twice",
        "`ema` stands at the top level, as in United-Perception, or under `trainer`; two that differ cannot both hold.",
        "wrong: ema: {kwargs: {decay: 0.999}} with trainer: {ema: {kwargs: {decay: 0.9998}}}",
    ),
    "KD226": Explanation(
        "class of a teacher named twice, or none",
        "`classes` says for each class of the data which class of the teacher it is; two classes of the data"
        " can't share one, and an empty list says nothing.",
        "wrong: teacher0: {classes: {cat: 281, dog: 281}}\nright: teacher0: {classes: {cat: 281, dog: 207}}",
    ),
    "KD227": Explanation(
        "output name that can't be used",
        "`outputs` names what a model returns as a tuple, in order. Taps and losses say these names, so each stands"
        " once and has letters, digits and `_` only; `_` alone drops an entry, and one entry at least is kept.",
        "wrong: outputs: [logits, logits]\nright: outputs: [logits, features]",
    ),
    "KD228": Explanation(
        "weight below 0",
        "A loss with a negative weight is made larger, not smaller. Where that is meant, `allow_negative: true` says"
        " so: beside `loss_weight` of a job, or beside the `kwargs` of a loss.",
        "wrong: loss_weight: -1\nright: loss_weight: 1, or loss_weight: -1 with allow_negative: true",
    ),
    "KD240": Explanation(
        "task's loss without labels",
        "The task's own loss compares with labels. Data that says `labels: none` has none, and what the student learns"
        " comes from its teachers alone: `task_loss: false` is the default there, and a written true can't be.",
        "wrong: mimic: {task_loss: true, ...} with labels: none\nright: mimic: {...}",
    ),
    "KD241": Explanation(
        "nothing to learn from",
        "Images without labels teach nothing by themselves: a student learns from them what a teacher shows, which"
        " `mimic` describes.",
        "right: runtime: {runner: {type: kd}}, teacher0: [...], mimic: {teacher0: {...}, student: {...}}",
    ),
    "KD242": Explanation(
        "something needs labels, and the data has none",
        "Some losses read the class of each image, an evaluator compares with it, mixup and cutmix mix it, and"
        " `teacher_weighting: confidence` asks which teacher knows it. With `labels: none` there is nothing to read.",
        "wrong: cfgs: {loss: {type: dkd_loss}} with labels: none\nright: cfgs: {loss: {type: kd_loss, kwargs: {T: 4}}}",
    ),
    "KD229": Explanation(
        "spec of another runner",
        "United-Perception has runners for quantisation, sparsity, architecture search, 3-D detection, segmentation,"
        " self-supervised and multitask training. kdcli trains and distils classifiers and detectors, and reads no"
        " further in a spec for anything else.",
        "runtime: {runner: {type: quant}}",
    ),
    "KD230": Explanation(
        "value of United-Perception that kdcli hasn't",
        "`register_type`, `lr_register_type` and `pad_type` choose other code there. The plain value is what is done"
        " here anyway; any other would train another way, so that it is no detail to leave out.",
        "wrong: optimizer: {register_type: yolov5}\nright: optimizer: {register_type: base}, or the key left out",
    ),
    "KD231": Explanation(
        "learning rates by layer without layers",
        "`optimizer.pconfig.layer_decay` lowers the learning rate from layer to layer of a vision transformer called"
        " `backbone` (`backbone.layers.encoder_layer_0` ...). The network has none.",
        "right: net: [{name: backbone, type: vit_base_patch16_224}, ...]",
    ),
    "KD232": Explanation(
        "override without effect",
        "What stands once under `dataset` for both sides holds where a side has no such key of its own. Both have one"
        " here, so that the argument would change nothing.",
        "wrong: kdcli train cfg.yaml dataset.dataloader.kwargs.num_workers=8\n"
        "right: kdcli train cfg.yaml dataset.train.dataloader.kwargs.num_workers=8",
    ),
    "KD233": Explanation(
        "one setting given twice",
        "A key of United-Perception's place, or its hook `grad_clipper`, and kdcli's own key say different things.",
        "wrong: fp16: true with runtime: {fp16: false}",
    ),
}
