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
        "Some losses read the class of each image, an evaluator compares with it, and"
        " `teacher_weighting: confidence` asks which teacher knows it. With `labels: none` there is nothing to read."
        " mixup and cutmix of kdcli mix images without labels too.",
        "wrong: cfgs: {loss: {type: dkd_loss}} with labels: none\nright: cfgs: {loss: {type: kd_loss, kwargs: {T: 4}}}",
    ),
    "KD243": Explanation(
        "parameters that nothing trains",
        "A loss on features trains the layers up to the feature: what comes after it, often the classifier, gets no"
        " gradient and stays as it was made. A student whose answers depend on that is measured by what it learns of"
        " its teachers, and exported as a backbone.",
        "right: a loss on the logits too, `task_loss: true` with labels, or `saver.pretrain_model` with a whole head",
    ),
    "KD244": Explanation(
        "detector without a trained head",
        "Nothing has trained the detector's head in this run, so that its boxes mean nothing. Its features are in the"
        " run's student.safetensors.",
        "right: saver: {pretrain_model: runs/features/student.safetensors} in a training with labels",
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
    "KD234": Explanation(
        "argument of United-Perception that kdcli hasn't",
        "`has_mask` and `multilabel` are read where they are false. Switched on they ask for instance masks, or for"
        " several right classes of one image, which kdcli does not train.",
        "wrong: dataset: {type: coco, kwargs: {has_mask: true}}\nright: has_mask: false, or the key left out",
    ),
    "KD260": Explanation(
        "images of a probe that are not made as the student's",
        "A probe measures the features that the student has of images as it was trained on them: with other channels"
        " or another normalisation it would measure how the student takes wrong pixels. A teacher with an `input` of"
        " its own gets its own pixels from these.",
        "wrong: transformer: [{type: to_tensor}]\n"
        "right: transformer: [{type: to_tensor}, *normalize]   # the `normalize` of dataset.train, by its anchor",
    ),
    "KD261": Explanation(
        "a class of a probe with a single image",
        "The linear probe's L2 is chosen on images that are held out of the probe's training part, some of each class:"
        " a class of one image has none to hold out. Five images a class are enough for the usual five folds.",
        "wrong: few/train/cat/1.jpg alone\nright: few/train/cat/1.jpg, few/train/cat/2.jpg",
    ),
    "KD262": Explanation(
        "a probe of one class",
        "k-NN and a linear classifier tell classes apart; with one class every answer is right.",
        "wrong: few/train/cat\nright: few/train/cat, few/train/dog",
    ),
    "KD263": Explanation(
        "a probe without one class for each image",
        "A probe is the small labelled set beside training data that may have no labels: `labels: none`, boxes and"
        " several labels of an image give it nothing to learn from.",
        "wrong: probe: {train: {dataset: {type: image_folder, kwargs: {root: few, labels: none}}}}\n"
        "right: probe: {train: {dataset: {type: image_folder, kwargs: {root: few}}}}",
    ),
    "KD264": Explanation(
        "images in both parts of a probe",
        "An image that the probe has learnt from is its own nearest neighbour: what is measured on it is better than"
        " what the features are worth. The files are compared, links followed; copies are not found.",
        "wrong: probe: {train: {... root: few}, test: {... root: few}}\n"
        "right: probe: {train: {... root: few/train}, test: {... root: few/test}}",
    ),
    "KD265": Explanation(
        "a feature that can't be probed",
        "A probe reads one vector for each image: the input of the classifier, or what `feature` names: a vector, a map"
        " (its mean over positions) or tokens (the class token, else the mean of the patches). What has another layout,"
        " or one that isn't known, gives none.",
        "wrong: feature: features            # a list of maps\nright: feature: 'features[3]'       # the deepest",
    ),
    "KD266": Explanation(
        "a probe of a task that has none",
        "k-NN and the linear probe classify whole images by one vector each; a detector's features are of boxes.",
        "wrong: runtime: {task_names: kd_det}, dataset: {probe: ...}\nright: a spec of classifiers",
    ),
    "KD267": Explanation(
        "a probe's feature of a network that the run has not",
        "`feature` is a layer of the student, or names the layer of each network: `student` and the teachers that a job"
        " uses.",
        "wrong: feature: {teacher: blocks.11}\nright: feature: {teacher0: blocks.11}",
    ),
    "KD268": Explanation(
        "fewer than five folds in a probe",
        "The linear probe's L2 is chosen by five stratified folds of its training part. Where a class has fewer images"
        " there are as many folds as it has images, and the choice is less sure.",
        "wrong: few/train/cat with 3 images\nright: few/train/cat with 5 images",
    ),
    "KD270": Explanation(
        "values of a sweep that can't be tried",
        "Under `sweep` a key has a list of values, or a range with `low` below `high`; a logarithmic range is above 0."
        " A single value leaves nothing to try.",
        "wrong: sweep: {mimic.loss_weight: {low: 0, high: 10, log: true}}\n"
        "right: sweep: {mimic.loss_weight: {low: 0.1, high: 10, log: true}}",
    ),
    "KD271": Explanation(
        "no share of the training data to hold out",
        "`hold_out` takes its share of each class, and leaves each class a sample at least. Of very few samples that"
        " may be none; batches that are made outside kdcli can't be divided.",
        "wrong: hold_out: 0.01      # of 20 images a class\nright: hold_out: 0.1",
    ),
    "KD272": Explanation(
        "a key that can't be swept here",
        "`method` and `pairs` are about the one loss of one job of the method `base` with one teacher. What the sweep"
        " itself sets, the folder, the seed and what is held out, is the same in all trials or none of theirs.",
        "wrong: sweep: {runtime.random_seed: [1, 2, 3]}\nright: kdcli sweep cfg.yaml --seeds 3",
    ),
    "KD292": Explanation(
        "images held in memory can't be decoded smaller for each crop",
        "`in_memory: true` decodes each image once, whole, and keeps it. `scaled_decode: true` decodes a JPEG in each"
        " epoch anew, at 1/2, 1/4 or 1/8 of its size where that is enough for what the first transform cuts out of it.",
        "wrong: {image_dir: photos, scaled_decode: true} with in_memory: true\nright: in_memory: true alone",
    ),
    "KD288": Explanation(
        "deterministic against cudnn_benchmark",
        "cuDNN's benchmark takes the algorithm that was fastest just now, so that two runs may take two;"
        " `deterministic` asks for the same bits at each run.",
        "right: runtime: {deterministic: true}",
    ),
}
