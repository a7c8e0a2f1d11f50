"""Codes KD530 to KD540: weight files."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

WEIGHTS: dict[str, Explanation] = {
    "KD530": Explanation(
        "a weights file that is not there",
        "A relative path is looked up beside the file that writes it, then in the working directory; one on the"
        " command line in the working directory alone.",
        "wrong: teacher_weight: teacher.pt\nright: teacher_weight: ../weights/teacher.pt",
    ),
    "KD531": Explanation(
        "weights that do not fit the network",
        "Every tensor of the network must be in the file with its shape, and nothing else;"
        " otherwise a part would"
        " stay random in silence. `saver.pretrain_model` may lack whole modules and the classifier;"
        " a teacher's file may hold modules that its list lacks, as a list may end after the layers"
        " that are mimicked.",
        "wrong: a file of 1000 classes for num_classes: 10 as teacher_weight\n"
        "right: the network as it was trained",
    ),
    "KD532": Explanation(
        "a file that can't be read as weights",
        "It is torn, of another format, or holds no tensors. kdcli reads safetensors and torch"
        " files: a state dict,"
        " bare or under `model`, `state_dict` or `ema.ema_state_dict`, and its own checkpoints.",
        "wrong: teacher_weight: page.html\nright: teacher_weight: teacher.safetensors",
    ),
    "KD533": Explanation(
        "a weights file that declares more than it holds",
        "A small file may claim tensors of any size, to fill the memory. It is damaged or was made"
        " to do harm.",
        "right: fetch the file again from a source you trust",
    ),
    "KD534": Explanation(
        "torchvision has no weights of that name",
        "`torchvision:` is followed by a weights class of torchvision and a member of it.",
        "wrong: teacher_weight: torchvision:resnet50\n"
        "right: teacher_weight: torchvision:ResNet50_Weights.IMAGENET1K_V2",
    ),
    "KD535": Explanation(
        "weights that can't be downloaded",
        "The weights were asked for by name and neither the network nor torchvision's cache has them.",
        "right: download the file elsewhere, and give its path as the weight",
    ),
    "KD536": Explanation(
        "a checkpoint that would run code",
        "A pickle can name any function to be called while it is read. kdcli reads tensors and"
        " plain values only;"
        " the message names what the file asks for beyond that.",
        "right: torch.save(model.state_dict(), 'weights.pt'), where you trust the original",
    ),
    "KD540": Explanation(
        "weights that can't be written",
        "The disk is full or the folder is not writable. A file of that name is still the old one, whole.",
        "right: saver: {save_dir: /data/runs}",
    ),
}
