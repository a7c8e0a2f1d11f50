"""Codes KD6xx: warnings about a spec that is right as far as one can tell."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

CAUTIONS: dict[str, Explanation] = {
    "KD601": Explanation(
        "building block that nothing uses",
        "A top-level mapping with a `type` and no anchor cannot be used anywhere: a leftover, or a missing"
        " anchor.",
        "right: flip: &flip {type: flip}, and *flip where it is used",
    ),
    "KD602": Explanation(
        "mimic is ignored",
        "The runner `base` trains `net` alone. Right for a baseline; wrong if the spec was to distil.",
        "to distil: runtime: {runner: {type: kd}}",
    ),
    "KD603": Explanation(
        "warm-up key inside kwargs",
        "Warm-up keys stand beside the scheduler's `kwargs`, and one inside is read as if it did. Only in those of"
        " CosineAnnealingLR, `warmup_iter` has a meaning of its own, United-Perception's: it is the step, of"
        " a warm-up beside `kwargs`, from which the cosine falls.",
        "right: lr_scheduler: {warmup_iter: 500, type: MultiStepLR, kwargs: {...}}",
    ),
    "KD604": Explanation(
        "two building blocks of one name",
        "Both are found by their anchors, but the name misleads readers, and an override of it changes both.",
        "right: train_resize: &train_resize ... and test_resize: &test_resize ...",
    ),
    "KD605": Explanation(
        "teacher that no job uses",
        "The teacher is not built. If a job was to use it, its name there is different.",
        "right: mimic: {teacher1: {...}} beside teacher1: [...]",
    ),
    "KD606": Explanation(
        "kl_loss on logits",
        "kl_loss applies ReLU before the softmax, so negative logits are lost. On logits kd_loss is nearly"
        " always meant.",
        "better: type: kd_loss, kwargs: {T: 4}",
    ),
    "KD607": Explanation(
        "milestone past the end",
        "The training is over before this milestone; the learning rate never falls there. Milestones count"
        " epochs.",
        "wrong: max_epoch: 100, milestones: [30, 60, 120]",
    ),
    "KD608": Explanation(
        "warm-up longer than the training",
        "The warm-up never ends, so the full weight or learning rate is never reached.",
        "wrong: max_iter: 100, warmup_iter: 500",
    ),
    "KD609": Explanation(
        "placeholder instead of a path",
        "The path looks like one to be filled in.",
        "wrong: teacher_weight: path/to/teacher.pth",
    ),
    "KD610": Explanation(
        "frozen BatchNorm without pretrained weights",
        "`freeze_bn` (the default of ResNets) keeps the statistics that the weights came with; without"
        " weights these are zero and one for ever.",
        "right: normalize: {type: solo_bn}, or saver: {pretrain_model: resnet50.pth}",
    ),
    "KD611": Explanation(
        "learning rate scaled tenfold at once",
        "The effective learning rate is lr x processes x samples of a step, United-Perception's rule; so large a jump"
        " without warm-up mostly diverges. Adam and its kin make steps as long as the learning rate, however many"
        " samples a step has: there it is told with a warm-up too, above 0.01.",
        "right: warmup_iter: 500, or warmup_register_type: no_scale_lr",
    ),
    "KD612": Explanation(
        "hook that kdcli does not have",
        "The hook is not run. What it did may be built in: `kdcli schema` shows the keys.",
        "known: auto_save_best, auto_checkpoint, train_val_logger",
    ),
    "KD613": Explanation(
        "building block named like a section",
        "The key has an anchor and is therefore taken for a building block, but its name is close to a"
        " section's.",
        "wrong: trianer: &t {...}\nright: trainer: {...}",
    ),
    "KD614": Explanation(
        "key without effect",
        "United-Perception's specs carry this key; kdcli needs nothing like it.",
        "image_reader: {kwargs: {memcached: false}}",
    ),
    "KD615": Explanation(
        "module twice",
        "United-Perception lets a later module of the same name take the first one's place, and some of its"
        " specs repeat one; so does kdcli where both have one type.",
        "wrong: two modules `{name: bbox_head_pre_process, type: BboxFC_Pre}`",
    ),
    "KD616": Explanation(
        "factors of an untrained paraphraser",
        "`ft` compares the student with factors that a paraphraser makes of the teacher's map. A stage with"
        " `ft_paraphrase` on the same layer, before it, trains that; without one it stays random.",
        "right: stages: [{name: teacher, max_epoch: 1, jobs: [mimic_job0], task_loss: false}, ...]",
    ),
    "KD618": Explanation(
        "weights that are read in part, or otherwise",
        "The list of a teacher may end after the layers that are mimicked; the rest of its weights is not"
        " read. Where the teacher is to be measured too (`kdcli eval`), it needs its heads. It is also said where a"
        " moving average is taken before the live weights, what all names begin with is taken off (`module.`, `net.`),"
        " or torchvision's names of a detector are read as United-Perception's.",
        "right: teacher0: [backbone, neck], with the checkpoint of the whole detector",
    ),
    "KD619": Explanation(
        "moving average that counts from 0",
        "`inner_T` and `warmup` of `ema` count steps from 1: at 0 the average would never be taken, or be"
        " divided by 0.",
        "right: ema: {enable: true, kwargs: {decay: 0.999, warmup: 1}}",
    ),
    "KD620": Explanation(
        "size of the images not told",
        "The transforms leave images of various sizes, so the shapes were checked at a usual one.",
        "right: end the transformer with torch_center_crop, or torch_resize to [height, width]",
    ),
    "KD621": Explanation(
        "two files of one name",
        "A path written in a file is looked up beside that file, then in the working directory, and it is in"
        " both. The message says which one is taken: the first, or the one that the run took when it was started.",
        "right: an absolute path, or a name that only one of the two folders has",
    ),
    "KD622": Explanation(
        "the file that a run took is gone",
        "A run folder keeps which file was taken for each path of its spec. That one is no longer there, so the"
        " path was looked up anew; what it names now may hold something else.",
        "right: the file back in its place, or a run folder that is moved together with its files",
    ),
    "KD623": Explanation(
        "files left out of an image folder",
        "Below `root` lie files that are no images kdcli reads, hidden files and folders, or images in no class"
        " folder. They are counted by kind, so that images left out by mistake are seen.",
        "`.heic` files are left out: save them as JPEG or PNG",
    ),
    "KD624": Explanation(
        "classes of the test data not as trained",
        "The test data has no image of a class that is trained on, so nothing tells how well that is learnt; or one"
        " side alone names its classes, so that the other's numbers are taken for them, in order.",
        "train/{cat,dog}, test/{cat}",
    ),
    "KD626": Explanation(
        "probabilities where logits are meant",
        "A loss on logits takes their softmax itself. Values that have been through one lie between 0 and 1, and the"
        " softmax of these is nearly even: the teacher tells nothing, or cross entropy can't fall. Name the layer"
        " before the softmax, or leave it out of the student's forward.",
        "wrong: mimic_name: [model.softmax]\nright: mimic_name: ['model.softmax:in']",
    ),
    "KD630": Explanation(
        "learning rate of 0",
        "With a learning rate of 0 no weight moves: the run ends with the weights that it began with.",
        "wrong: optimizer: {type: SGD, kwargs: {lr: 0}}\nright: optimizer: {type: SGD, kwargs: {lr: 0.05}}",
    ),
    "KD631": Explanation(
        "loss of weight 0",
        "A loss that is multiplied by 0 has no gradient: it costs time and teaches nothing.",
        "right: a weight above 0, or the loss left out",
    ),
    "KD632": Explanation(
        "steps too large to train with",
        "The learning rate, or its product with `weight_decay`, is so large that weights are thrown far away at every"
        " step. Adam and its kin move each weight by about the learning rate; others diverge far below 100 too.",
        "wrong: optimizer: {type: Adam, kwargs: {lr: 3}}\nright: optimizer: {type: Adam, kwargs: {lr: 0.003}}",
    ),
    "KD633": Explanation(
        "optimizer that climbs",
        "`maximize: true` of torch's optimizers makes the loss larger, and distillation wants it smaller.",
        "right: leave `maximize` out",
    ),
    "KD634": Explanation(
        "learning rate that grows",
        "`gamma` is what the learning rate is multiplied by at each milestone or epoch. Above 1 it grows, without end.",
        "wrong: kwargs: {milestones: [30, 60], gamma: 10}\nright: kwargs: {milestones: [30, 60], gamma: 0.1}",
    ),
    "KD635": Explanation(
        "schedule of another length than the training",
        "CosineAnnealingLR falls until `T_max` epochs and rises again after them; PolynomialLR is 0 after"
        " `total_iters`; OneCycleLR ends at `total_steps`. Where the training is shorter, the learning rate never"
        " comes to its end.",
        "wrong: max_epoch: 100, kwargs: {T_max: 90}\nright: max_epoch: 100, kwargs: {T_max: 100}",
    ),
    "KD636": Explanation(
        "batch larger than the training data",
        "Every epoch has one batch of all samples, whatever `batch_size` says, so there are fewer steps and less noise"
        " than meant.",
        "wrong: batch_size: 256 for 100 images\nright: batch_size: 32",
    ),
    "KD645": Explanation(
        "test images that are normalised otherwise",
        "The two sides' `normalize` differ. A network that was trained on the one kind of pixels and measured on the"
        " other scores less than it can, up to chance, and its teacher is measured on the test images alone.",
        "wrong: {train: {dataset: {kwargs: {transformer: [{type: to_tensor}, {type: normalize, ...}]}}},"
        " test: {dataset: {kwargs: {transformer: [{type: to_tensor}]}}}}\n"
        "right: an anchor, `transformer: &read [...]` and `transformer: *read`",
    ),
    "KD646": Explanation(
        "test data that is the training data",
        "Both sides name the same data, and no part of it is held out. A student is measured on what it was trained on:"
        " the figure says how well it remembers.",
        "right: {train: {dataset: {kwargs: {root: images/train}}}, test: {dataset: {kwargs: {root: images/test}}}}\n"
        "right: dataset: {hold_out: 0.1, ...}",
    ),
    "KD668": Explanation(
        "normalisation of other pixels",
        "`to_tensor` brings pixels to 0..1. A mean of 123 subtracted from them leaves nothing of the image but a"
        " constant, and training still runs.",
        "wrong: [{type: to_tensor}, {type: normalize, kwargs: {mean: [78], std: [96]}}]\n"
        "right: [{type: to_tensor}, {type: normalize, kwargs: {mean: [0.305], std: [0.376]}}]",
    ),
    "KD669": Explanation(
        "teacher much smaller than the student",
        "Distillation is from a large network to a small one. Where the teacher has less than half the student's"
        " parameters, the two may stand in each other's place.",
        "wrong: net: [{type: torchvision.resnet50}], teacher0: [{type: torchvision.resnet18}]",
    ),
    "KD640": Explanation(
        "cache with few views",
        "Random transforms are drawn anew in each epoch; a cached teacher has seen `views` of them, and the student"
        " sees the same ones over and over. It may learn these by heart: a low training loss then says less, and a"
        " baseline with fresh pixels is no equal comparison.",
        "more: cache: {views: 20}\nnone: leave `cache` out",
    ),
    "KD641": Explanation(
        "keys of United-Perception",
        "Named once for the whole spec: keys that mean another key here and are read as that, and keys that change"
        " nothing in the training. The spec may stay as it is.",
        "hooks: grad_clipper {mode: pre_defined, max_norm: 35} is trainer.clip_grad_norm: 35",
    ),
    "KD642": Explanation(
        "unused block that is called like a key",
        "A top-level block with an anchor is a building block, which does nothing until an alias uses it. This one has"
        " the name of a key one level down, and was most likely meant there.",
        "wrong: optimizer: &optimizer {...}\nright: trainer: {optimizer: {...}}",
    ),
    "KD643": Explanation(
        "gradients that are not clipped",
        "United-Perception's hook `grad_clipper` can clip at a norm that it learns, or by another norm than the"
        " 2-norm. kdcli clips at a given 2-norm only, and this run clips nothing.",
        "right: trainer: {clip_grad_norm: 5}",
    ),
    "KD644": Explanation(
        "override that one side does not take",
        "What stands once under `dataset` for both sides holds where a side has no such key of its own: one side has,"
        " so that only the other takes the argument.",
        "kdcli train cfg.yaml dataset.train.dataloader.kwargs.num_workers=8",
    ),
    "KD647": Explanation(
        "loss that no step has",
        "The training, or each stage that the job is in, ends before the loss begins (`start_iter` counts from the"
        " start of a stage); or no stage names the job. What the loss was to teach is not learnt.",
        "wrong: stages: [{name: only, max_epoch: 10, jobs: [mimic_job0]}] with a mimic_job1",
    ),
    "KD648": Explanation(
        "length that stages overrule",
        "With `mimic.stages` each stage says how long it lasts; `max_epoch` or `max_iter` of the trainer is read where"
        " there are none. Their sum may stand there.",
        "wrong: trainer.max_epoch=1 for stages of 10 and 30 epochs; right: mimic.stages.0.max_epoch=1",
    ),
    "KD649": Explanation(
        "warm-up that is none",
        "A warm-up goes from a share of the learning rate (`warmup_ratio`), or from the rate as it is written where"
        " `scale_lr` multiplies it by the batch size, up to the rate itself. Where both are the same it does nothing.",
        "right: lr_scheduler: {warmup_iter: 500, warmup_type: linear, warmup_ratio: 0.01}",
    ),
    "KD650": Explanation(
        "part of pconfig that meets no parameter",
        "`pconfig` gives parameters of some kinds of layers, or with some names, settings of their own. The student has"
        " none of that kind or name: a misspelt name looks the same.",
        "wrong: pconfig: {nodecay: [nrom]}; right: pconfig: {nodecay: [norm]}",
    ),
    "KD666": Explanation(
        "part of tokens that is not there",
        "`:patches`, `:class` and `:prefix` name a part of a transformer's tokens. The layer gives no tokens, has none"
        " of that part, or its layout isn't known.",
        "right: mimic_name: ['blocks.11:class'] of a ViT with a class token\n"
        "right: layout: {prefix: 1, grid: [14, 14]} beside the mimic_name, where kdcli can't find it out",
    ),
    "KD667": Explanation(
        "patch tokens that fit no grid",
        "The grid of a network's patch tokens is known from its first batch. An image of other proportions gives"
        " tokens in another grid, which their number doesn't show.",
        "right: transformer: [{type: torch_resize, kwargs: {size: [224, 224]}}, ...]",
    ),
}
