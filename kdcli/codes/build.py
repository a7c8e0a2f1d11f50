"""Codes KD4xx: what is built: networks, taps, pairs, losses, optimizers, stages."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

BUILD: dict[str, Explanation] = {
    "KD401": Explanation(
        "a type that names no module or model",
        "The type of a module is one of kdcli's names, `torchvision.<classifier>` or a torchvision detector of"
        " boxes, `timm.<model>` or, with `--plugin`, `package.module:attribute`. The nearest names are given.",
        "wrong: type: resnet81\nright: type: resnet18",
    ),
    "KD402": Explanation(
        "a module that can't be built from its kwargs",
        "The arguments have the right names, but the module refuses their values; what it said is"
        " in the message.",
        "wrong: kwargs: {out_layers: [5]}\nright: kwargs: {out_layers: [4]}",
    ),
    "KD403": Explanation(
        "a module that needs the widths of one before it",
        "FPN, ADAP and the heads take their input channels from a backbone or neck: the one named in `prev`,"
        " else the last before them.",
        "wrong: net: [{name: neck, type: FPN}, {name: backbone, type: resnet50}]\n"
        "right: net: [{name: backbone, type: resnet50}, {name: neck, type: FPN, prev: backbone}]",
    ),
    "KD404": Explanation(
        "an argument that the module does not have",
        "Nothing is ignored: a misspelt argument would leave its default in force without a word.",
        "wrong: kwargs: {frozen_layer: [0]}\nright: kwargs: {frozen_layers: [0]}",
    ),
    "KD405": Explanation(
        "an argument that the module needs is not given",
        "Some arguments have no sensible default, such as the number of classes.",
        "wrong: {name: head, type: base_cls_head}\n"
        "right: {name: head, type: base_cls_head, kwargs: {num_classes: 10}}",
    ),
    "KD406": Explanation(
        "own code that gives no `nn.Module`",
        "The attribute after the colon is a class derived from torch's `nn.Module`, or a function"
        " that returns one.",
        "wrong: type: my_pkg.nets:CONFIG\nright: type: my_pkg.nets:Tiny",
    ),
    "KD407": Explanation(
        "`prev` names no module that stands before",
        "Modules run in list order, so widths can come only from one further up the list.",
        "wrong: {name: neck, type: FPN, prev: backbon}\nright: {name: neck, type: FPN, prev: backbone}",
    ),
    "KD408": Explanation(
        "a freeze pattern that freezes nothing",
        "A pattern is a prefix of a layer path, or `r:` and a regular expression searched in it.",
        "wrong: freeze_patterns: [layer1]\nright: freeze_patterns: [backbone.layer1]",
    ),
    "KD409": Explanation(
        "a module name that can't be used",
        "A name stands once in a network, has no dot, does not begin with an underscore and is none of"
        " `nn.Module`'s own words such as `train`; a network has at least one module.",
        "wrong: {name: backbone.a, type: resnet18}\nright: {name: backbone, type: resnet18}",
    ),
    "KD410": Explanation(
        "a module that changes another one's tensor in place",
        "The batch and the features are read by other modules, by the losses and by other networks."
        " A module works"
        " on a copy.",
        "wrong: x = batch['image'].sub_(mean)\nright: x = batch['image'] - mean",
    ),
    "KD411": Explanation(
        "a whole model that returns neither logits nor named outputs",
        "A model that is no kdcli module returns a tensor, which is taken as `logits`, or something that names its"
        " outputs: a mapping, a dataclass, a named tuple. What it returns as a plain tuple or list is named in the"
        " spec, in order; `_` drops an entry, and a list within becomes a list (`features[0]`).",
        "right: {name: model, type: 'nets:resnet8x4', outputs: [logits, features]}",
    ),
    "KD412": Explanation(
        "torchvision has no such weights for the model",
        "`weights` of a torchvision model would be a member of its weights class, or DEFAULT. In a spec they are named"
        " elsewhere: `teacher_weight`, `saver.pretrain_model`.",
        "wrong: kwargs: {weights: imagenet}\nright: saver: {pretrain_model: torchvision:ResNet18_Weights.DEFAULT}",
    ),
    "KD413": Explanation(
        "code outside kdcli that the command line does not allow",
        "A spec is data, and a stranger's spec must not run code. Allow a package by name where you"
        " trust it.",
        "wrong: kdcli train own.yaml\nright: kdcli train own.yaml --plugin my_pkg",
    ),
    "KD414": Explanation(
        "own code that can't be imported",
        "The package was allowed, but the import failed or the attribute is missing; what Python"
        " said is in the"
        " message. Is the package installed, or the working directory its parent?",
        "wrong: type: my_pkg.net:Tiny\nright: type: my_pkg.nets:Tiny",
    ),
    "KD415": Explanation(
        "timm is not installed",
        "timm's models are an extra of kdcli.",
        "right: pip install 'kdcli[timm]'",
    ),
    "KD416": Explanation(
        "images of another size than the model was built for",
        "A vision transformer has one embedding for each patch, so its images have one size.",
        "wrong: {type: vit_b_16} on images of 32 pixels\nright: {type: vit_b_16, kwargs: {image_size: 32}}",
    ),
    "KD417": Explanation(
        "label smoothing over another number of classes",
        "`label_smooth_ce` spreads a share over `num_classes` classes: as many as the head has.",
        "wrong: smooth_ratio: 0.1, num_classes: 1000 with a head of 10\nright: num_classes: 10 in both",
    ),
    "KD418": Explanation(
        "network that cannot run",
        "Run on images of the data's size (a detector: of 128x128, an SSD of 320x320) the network fails; the"
        " message names the layer and what it was given.",
        "wrong: torchvision.vit_b_16 on images of 32x32\nright: torch_resize to [224, 224], or another network",
    ),
    "KD419": Explanation(
        "number of classes differs from the data",
        "The student gives another number of logits than the data has classes. With too few a label would lie"
        " beyond the logits; too many are never right, and cost a little.",
        "wrong: num_classes: 1000 with digits\nright: num_classes: 10",
    ),
    "KD420": Explanation(
        "not a layer path",
        "A layer is named by its module path, with `:in` for its input, `:patches`, `:class` or `:prefix` for a part of"
        " its tokens and `[i]` for its i-th call.",
        "right: backbone.layer3, backbone.layer3:in, blocks.11:patches, head.conv[2]",
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
        "axis of the channels not known",
        "A feature of four axes is a map [B, C, H, W], a map that keeps its channels last as in Swin, or no map at all:"
        " windows, or split over the heads of an attention. What makes and reads it tells, else the proportions of"
        " the image; here neither does. Read the wrong way, rows would be taken for channels. (`runtime.channels_last`"
        " is another thing: how maps lie in memory.)",
        "wrong: mimic_name: [blocks.0.attn.q_norm], the queries of each head\nright: mimic_name: [blocks.0]\n"
        "right: layout: {channels: last} beside the mimic_name of a map that keeps its channels last",
    ),
    "KD426": Explanation(
        "places that no adapter can match",
        "Patch tokens are joined with maps in their grid, where the grid and the number of tokens before it (class,"
        " registers) are known. Here they aren't: laid out by a guess, they would be compared with other places of"
        " the image. A vector has no places at all.",
        "right: teacher0: {mimic_name: [blocks.11], layout: {prefix: 1, grid: [14, 14]}}\n"
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
        "torch.optim.lr_scheduler refuses these arguments, a cosine would begin (`warmup_iter` in its kwargs, in"
        " steps) after its end (`T_max`, in epochs), or a cycle would move the momentum of an optimizer that has none.",
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
    "KD450": Explanation(
        "features of a shape that the loss does not take",
        "A loss takes logits, maps, tokens or vectors, most of them of one shape for both networks; "
        "`kdcli methods NAME` says which. Name another layer, or add `adapter: auto`.",
        "wrong: type: dkd on backbone.layer4\nright: type: dkd on logits",
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
        "`temperature` and `standardize: true` are for losses that soften logits; `standardize: mean_std` (or `global`,"
        " `phi_s`) is for losses of the method `base` that compare features. This one has no use for it.",
        "wrong: temperature: 4 beside l2_loss\nright: type: kd_loss\nright: standardize: phi_s beside l2_loss",
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
    "KD460": Explanation(
        "network without class scores of positions",
        "FRS compares and weighs by the scores that a dense head (`NaiveRPN`, `RetinaSubNet` ...) gives at"
        " every position; a list that ends before the head gives none.",
        "right: end the teacher's list after `roi_head`, not after `neck`",
    ),
    "KD461": Explanation(
        "network that proposes no boxes",
        "SampleFeature pools maps on proposals, which come out of `rpn_post`: of the teacher, or of the student"
        " with `teacher_proposal: false`.",
        "wrong: a teacher that ends after `roi_head`\nright: end it after `post_process` (type rpn_post)",
    ),
    "KD462": Explanation(
        "levels that don't fit the tapped layers",
        "A detector's mimic method tells its levels apart by index: levels, strides and layers have to be as"
        " many as they say, the levels successive, strides and base scale above 0, or the wrong map is compared.",
        "right: rpn_fpn_levels: [0, 1], rpn_fpn_strides: [4, 8], neck_feature_nums: 2, two neck layers last",
    ),
    "KD463": Explanation(
        "more layers than the head has levels",
        "FRS weighs each tapped neck layer by the scores of the level with the same number.",
        "right: mimic_name: [neck.p2_conv, neck.p3_conv] with a head of two levels or more",
    ),
    "KD464": Explanation(
        "path that leads to no RoI pooling layer",
        "SampleFeature pools maps by the layer that `student_roipooler` and `teacher_roipooler` name; without"
        " them by the network's usual one, or by the other network's.",
        "right: student_roipooler: bbox_head_pre_process.roipool",
    ),
    "KD465": Explanation(
        "mask counted in an unknown way",
        "FRS divides its losses by its mask: by the sum over positions, as United-Perception does, or by the sum"
        " over all elements that the mask is broadcast to, which is as many times larger as there are channels.",
        "right: cfgs: {mask_count: positions}",
    ),
    "KD470": Explanation(
        "logits of unlike classes",
        "A loss compares logits class by class, and the teacher was trained on other classes than the data's. Which of"
        " them the data's are can't be guessed: `classes` says it, and selects these logits before everything else."
        " As many classes of other names are refused where a name that both have stands at another number."
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
    "KD473": Explanation(
        "names of outputs that do not fit",
        "`outputs` names the entries of the tuple or list that a whole model returns, one name for each. A model that"
        " returns a mapping, and every module of kdcli, names its outputs itself: none like a field of the batch"
        " (`labels`), which it would hide, and no two losses alike.",
        "wrong: outputs: [logits] where the model returns (logits, features)\nright: outputs: [logits, features]",
    ),
    "KD480": Explanation(
        "batch of a single sample",
        "BatchNorm, and losses that normalise over the batch, need two values a channel. On a map of 1x1 a batch of"
        " one sample has a single one. The last batch of an epoch holds what is left over of the samples.",
        "wrong: batch_size: 67 of 68 samples\nright: {batch_size: 67, drop_last: true}, or batch_size: 64",
    ),
    "KD495": Explanation(
        "a metric of one's own failed",
        "A method of the class that `evaluator.type` names raised an error, told with its file and line. What its"
        " methods get and give is `Metric` in kdcli/tasks/metric.py.",
        "right: sums() gives a vector of one length, also before the first batch",
    ),
    "KD496": Explanation(
        "code of a plugin failed",
        "A network, loss, method, dataset, transform, optimizer or other code of a package that `--plugin` names raised"
        " an error while it was built or run; the message has its type, its text, and the file and line.",
        "wrong: a transform that reads a file which only one machine has",
    ),
}
