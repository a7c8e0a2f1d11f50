"""Codes KD401 to KD418, KD473: building a network from its modules."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

NETWORKS: dict[str, Explanation] = {
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
        "`weights` of a torchvision model is a member of its weights class, or DEFAULT.",
        "wrong: kwargs: {weights: imagenet}\nright: kwargs: {weights: IMAGENET1K_V1}",
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
    "KD473": Explanation(
        "`outputs` that do not fit what the model returns",
        "`outputs` names the entries of the tuple or list that a whole model returns, one name for each. A model that"
        " returns a mapping, and every module of kdcli, names its outputs itself.",
        "wrong: outputs: [logits] where the model returns (logits, features)\nright: outputs: [logits, features]",
    ),
}
