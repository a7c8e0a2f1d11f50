"""Codes KD419 to KD454, KD470 to KD472: taps, pairs, losses, optimizers and stages once the networks stand."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

DISTILLATION: dict[str, Explanation] = {
    "KD419": Explanation(
        "number of classes differs from the data",
        "The student gives another number of logits than the data has classes. With too few a label would lie"
        " beyond the logits; too many are never right, and cost a little.",
        "wrong: num_classes: 1000 with digits\nright: num_classes: 10",
    ),
    "KD420": Explanation(
        "not a layer path",
        "A layer is named by its module path, with `:in` for its input and `[i]` for its i-th call.",
        "right: backbone.layer3, backbone.layer3:in, head.conv[2]",
    ),
    "KD421": Explanation(
        "container instead of a layer",
        "An nn.ModuleList or nn.ModuleDict holds layers and never runs itself, so a tap on it never fires.",
        "wrong: mimic_name: [blocks]\nright: mimic_name: [blocks.3]",
    ),
    "KD422": Explanation(
        "no such layer or output",
        "Nothing in the network has this name; the loss would never see a feature. What a layer gives several"
        " of, such as the levels of a detector's `fpn`, is named by a number in brackets.",
        "wrong: model.backbone.fpn.0\nright: 'model.backbone.fpn[0]'\n"
        "kdcli inspect-features cfg.yaml lists every name",
    ),
    "KD423": Explanation(
        "no such call of a layer",
        "`path[i]` names the i-th of several calls or elements; there are fewer.",
        "wrong: head.conv[5] of a head that runs on three levels\nright: head.conv[2]",
    ),
    "KD424": Explanation(
        "layer that does not run",
        "The layer exists, but a forward pass never calls it, or it returns no tensor.",
        "kdcli inspect-features cfg.yaml marks such layers",
    ),
    "KD425": Explanation(
        "channels last",
        "kdcli reads a feature of four axes as a map [B, C, H, W]. This one keeps its channels in the last axis, as"
        " all of Swin does before its `permute`, or is split over the heads of an attention. What makes and reads it"
        " tells: a layer norm or a linear layer works on the last axis, a convolution on the second. Read as a map,"
        " rows would be taken for channels and columns for rows. (`runtime.channels_last` is another thing:"
        " how maps lie in memory.)",
        "wrong: mimic_name: [model.features.7] of torchvision.swin_t\nright: mimic_name: [model.permute]\n"
        "kdcli inspect-features cfg.yaml marks such layers",
    ),
    "KD426": Explanation(
        "places that no adapter can match",
        "The tokens of a transformer are one sequence: class tokens and registers may be among them, and the grid of"
        " the others isn't known. Laid out as a map, or resampled to another number of tokens, they would be"
        " compared with other places of the image. A vector has no places at all. Equally many tokens are joined"
        " by a linear layer, tokens or a map and a vector by the mean over all positions (class tokens included).",
        "wrong: adapter: auto between a block of a ViT and a stage of a ResNet\n"
        "right: mimic_name: ['model.heads.head:in'] and ['model.fc:in'], the vectors before the classifiers",
    ),
    "KD430": Explanation(
        "features of different shape",
        "The loss compares features of one shape. An adapter maps the student's feature to the teacher's.",
        "right: cfgs: {loss: {type: l2_loss, adapter: auto}}",
    ),
    "KD431": Explanation(
        "lists of different length",
        "A layer that runs several times gives a list; student and teacher must give equally many.",
        "right: mimic_name: ['head.conv[0]'] in both",
    ),
    "KD432": Explanation(
        "adapter that cannot be built",
        "The adapter does not exist for features of these shapes, or its arguments do not fit.",
        "right: adapter: auto",
    ),
    "KD433": Explanation(
        "teacher without a classifier",
        "The method reads the weights of the layer that makes the teacher's logits; no single layer does.",
        "right: a teacher that ends with a linear layer",
    ),
    "KD434": Explanation(
        "feature without a BatchNorm",
        "The method reads the statistics of the BatchNorm that makes the teacher's feature; there is none.",
        "right: mimic_name: ['backbone.layer3.1.relu:in']",
    ),
    "KD435": Explanation(
        "job that cannot be built",
        "The method or one of its losses refuses these features or options.",
        "kdcli methods NAME tells what a method takes",
    ),
    "KD436": Explanation(
        "normalisation that cannot be undone",
        "A teacher's own mean and std are made from the student's pixels, so these must be normalised by a"
        " `normalize` transform that says how.",
        "right: transformer: [..., to_tensor, {type: normalize, kwargs: {mean: [...], std: [...]}}]",
    ),
    "KD437": Explanation(
        "loss that cannot be computed",
        "Run on features of the real shapes the loss fails, mostly since it takes others.",
        "kdcli methods NAME tells the shapes",
    ),
    "KD438": Explanation(
        "loss without a gradient for the student",
        "All that the loss reads of the student is frozen or computed without gradient; it would change"
        " nothing.",
        "wrong: frozen_layers: [0, 1, 2, 3, 4] and a loss on backbone.layer4",
    ),
    "KD439": Explanation(
        "loss that is no scalar",
        "A loss is one number; this one returned a tensor of another shape.",
        "right: return distance.mean()",
    ),
    "KD440": Explanation(
        "optimizer that cannot be built",
        "torch.optim refuses these arguments.",
        "wrong: SGD with nesterov: true and no momentum",
    ),
    "KD441": Explanation(
        "unknown argument of an optimizer or scheduler",
        "The class of torch.optim takes no such argument.",
        "wrong: kwargs: {wd: 5e-4}\nright: kwargs: {weight_decay: 5e-4}",
    ),
    "KD442": Explanation(
        "exponential warm-up from zero",
        "Zero times any factor stays zero, so an `exp` warm-up cannot leave it.",
        "right: warmup_type: linear, or warmup_ratio: 0.01",
    ),
    "KD443": Explanation(
        "scheduler that cannot be built",
        "torch.optim.lr_scheduler refuses these arguments, or a cosine would begin (`warmup_iter` in its kwargs, in"
        " steps) after its end (`T_max`, in epochs).",
        "wrong: MultiStepLR without milestones",
    ),
    "KD445": Explanation(
        "stage without a length",
        "Every stage says how long it lasts.",
        "right: stages: [{name: hints, max_epoch: 5}]",
    ),
    "KD446": Explanation(
        "student without a loss of its own",
        "No module of `net` gives a loss in training, so nothing is learnt from the labels.",
        "right: a base_cls_postprocess module, or task_loss: false under mimic",
    ),
    "KD447": Explanation(
        "pattern that matches no parameter",
        "`train` of a stage names parameters by the beginning of their path or by `r:` and a regex; this one"
        " names none.",
        "right: train: [backbone.layer1, 'r:.*bn.*']",
    ),
    "KD448": Explanation(
        "replaced classifier and task loss",
        "The method gives the student the teacher's classifier, which the task's own loss would train away.",
        "right: mimic: {task_loss: false, ...}",
    ),
    "KD449": Explanation(
        "classifier replaced twice",
        "The student has one classifier; a method that replaces it takes one layer and one teacher.",
        "right: one such loss, one pair of layers, one teacher",
    ),
    "KD451": Explanation(
        "feature of another kind than the loss takes",
        "Some losses take logits [B, K], pooled vectors [B, D], whole maps or what goes into a ReLU, and"
        " nothing else. `path:in` names a layer's input: the classifier's is the pooled vector, a ReLU's the"
        " pre-activation.",
        "wrong: type: ab on model.layer3\nright: mimic_name: ['model.layer3.0.relu:in']",
    ),
    "KD452": Explanation(
        "option that no loss of the job takes",
        "`temperature` or `standardize` is for losses that soften logits; this one has no use for it.",
        "wrong: temperature: 4 beside l2_loss\nright: type: kd_loss",
    ),
    "KD453": Explanation(
        "weighting of teachers that a loss cannot do",
        "entropy and confidence weigh every sample of every teacher; the loss gives no value per sample.",
        "right: teacher_weighting: average, or a loss such as kd_loss",
    ),
    "KD454": Explanation(
        "mutual learning without a peer",
        "Networks that teach each other stand in one `net`: the student, and modules of type `peer`; the job"
        " names the logits of each and no teacher.",
        "right: student: {mimic_name: [logits, peer_logits]}",
    ),
    "KD470": Explanation(
        "logits of unlike classes",
        "A loss compares logits class by class, and the teacher was trained on other classes than the data's. Which of"
        " them the data's are can't be guessed: `classes` says it, and selects these logits before everything else."
        " `adapter: auto` is refused between two networks' logits, since it would learn a map between their classes"
        " without a word; `adapter: {type: linear}` says that this is meant. Features need no classes.",
        "right: teacher0: {mimic_name: [logits], classes: {cat: 281, dog: 207}, ...}",
    ),
    "KD471": Explanation(
        "`classes` that do not cover the data's",
        "`classes` beside a teacher's mimic_name says of each class of the data which of the teacher's it is: a list"
        " in the data's order, or a mapping from the data's names.",
        "wrong: classes: [281] with cats and dogs\nright: classes: [281, 207]",
    ),
    "KD472": Explanation(
        "class that the teacher does not have",
        "The teacher's classes are the columns of its logits, counted from 0. They have names only where the weights"
        " file states them: kdcli's own students and torchvision's weights do.",
        "wrong: classes: {cat: 1000} of 1000 logits\nright: classes: {cat: 281}",
    ),
}
