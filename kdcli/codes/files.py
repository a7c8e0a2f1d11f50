"""Codes KD5xx: data, annotation and weight files."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

FILES: dict[str, Explanation] = {
    "KD501": Explanation(
        "no such dataset, reader, sampler or mixing",
        "The name is in none of kdcli's tables, or torchvision has no classification dataset of that name.",
        "wrong: dataset: {type: cifar10}\nright: dataset: {type: torchvision.CIFAR10, kwargs: {root: data}}",
    ),
    "KD502": Explanation(
        "optional package missing",
        "This dataset comes with a package that a plain installation of kdcli does not bring.",
        "pip install 'kdcli[demo]'",
    ),
    "KD503": Explanation(
        "no such transform",
        "A transform is one of kdcli's own names or `torchvision.<Name>` from torchvision.transforms.v2; some"
        " of those make several images of one, or take code, and can't be written in a spec.",
        "wrong: {type: torchvision.RandAug}\nright: {type: torchvision.RandAugment}",
    ),
    "KD504": Explanation(
        "unknown argument of a transform",
        "torchvision's transform has no such argument; it would otherwise fail when the data is built.",
        "wrong: {type: torchvision.RandAugment, kwargs: {num_op: 2}}\nright: kwargs: {num_ops: 2}",
    ),
    "KD505": Explanation(
        "data part that can't be built",
        "A dataset, transform, reader or mixing refused its arguments: missing, unknown, or out of range.",
        "wrong: {type: normalize, kwargs: {mean: [0.5], std: [0.0]}}\nright: std: [0.5]",
    ),
    "KD506": Explanation(
        "data set not on this disk",
        "kdcli downloads nothing. Get the files once as the help line says, then point `root` or `meta_file`"
        " to them; a relative path is looked up beside the file that writes it, then in the working"
        " directory; one on the command line in the working directory alone.",
        "kdcli train cfg.yaml dataset.train.dataset.kwargs.root=/data/fashion-mnist",
    ),
    "KD508": Explanation(
        "images of several sizes in memory",
        "`in_memory: true` holds all images in one array, so they must have one size when the transforms that"
        " draw nothing are done.",
        "right: transformer: [{type: torch_resize, kwargs: {size: [64, 64]}}, ...]",
    ),
    "KD509": Explanation(
        "no batch",
        "The dataset is empty, none of a detector's images has a box to train on, or `drop_last` drops its only,"
        " unfilled batch: nothing would be trained.",
        "right: lower `batch_size`, or leave `drop_last` out",
    ),
    "KD510": Explanation(
        "damaged data or annotation file",
        "The file does not follow its format: an idx file of another length than its header says, a line of a"
        " meta file without a label. Nothing is guessed.",
        'right: one `relative/path label` a line, or {"filename": "a.png", "label": 3}',
    ),
    "KD511": Explanation(
        "image that can't be read",
        "Missing, damaged, of a format that is not decoded, or declaring more pixels than is sane; or of more"
        " than 8 bits a channel, or transparent, where no `value_range` or `background` says how to read it."
        " With `on_bad_sample: skip` a training sample is replaced by the next good one, a test sample left"
        " out. `validate --files` looks at the header and the end of every file, and decodes some.",
        "right: dataloader: {kwargs: {on_bad_sample: skip, bad_sample_budget: 20}}\n"
        "12 bits: image_reader: {type: fs_pillow, kwargs: {image_dir: data, value_range: [0, 4095]}}\n"
        "cut-outs: image_reader: {type: fs_pillow, kwargs: {image_dir: data, background: white}}",
    ),
    "KD541": Explanation(
        "classes of the two sides differ",
        "Classes are matched by name: the training data's list is the truth, and the test data is labelled by it. A"
        " name that the training data lacks would be measured against another class, or none.",
        "wrong: train/{cat,dog}, test/{cat,hound}\nright: train/{cat,dog}, test/{cat,dog}",
    ),
    "KD542": Explanation(
        "batches that are none",
        "What is given in memory in place of a dataset is gone through once an epoch: it has a length, and each of its"
        " batches is a mapping with `image`, or a pair (image, labels).",
        "right: DataLoader(dataset, batch_size=64)",
    ),
    "KD543": Explanation(
        "data without labels",
        "A classifier is trained and measured against labels, and this data has none.",
        'right: {"image": images, "labels": labels}',
    ),
    "KD544": Explanation(
        "unknown number of samples",
        "The loss keeps something for every sample of the data, so it has to know how many there are.",
        "wrong: crd on batches of unknown origin",
    ),
    "KD512": Explanation(
        "too many bad samples",
        "More samples than `bad_sample_budget` could not be read: rather a wrong folder than a few"
        " torn files.",
        "right: mend the data, or dataloader: {kwargs: {bad_sample_budget: 1000}}",
    ),
    "KD513": Explanation(
        "name that leads out of the image folder",
        "Names in a list of images stay below `image_dir`; a list from elsewhere could otherwise"
        " read any file.",
        "wrong: ../../home/me/x.png 3\nright: train/x.png 3",
    ),
    "KD515": Explanation(
        "labels and number of classes disagree",
        "A label lies outside 0..num_classes-1, is missing, or the folders are more or fewer than"
        " `num_classes`.",
        "right: num_classes one more than the greatest label, in the data, the mixing and the head",
    ),
    "KD516": Explanation(
        "data worker died",
        "A process that loads data was ended from outside, mostly for want of memory.",
        "kdcli train cfg.yaml dataset.train.dataloader.kwargs.num_workers=2",
    ),
    "KD517": Explanation(
        "image that does not fit the transforms",
        "A transform can't take an image (a crop larger than it, another number of channels), or images of"
        " one batch come out in different sizes.",
        "right: end the geometric transforms with one size, e.g. torch_resize then torch_center_crop",
    ),
    "KD518": Explanation(
        "image folder that is not there",
        "`image_dir` names no folder. A relative path is looked up beside the file that writes it, then in the"
        " working directory; one on the command line in the working directory alone.",
        "right: image_reader: {type: fs_pillow, kwargs: {image_dir: data/train, color_mode: RGB}}",
    ),
    "KD519": Explanation(
        "image reader missing or out of reach",
        "`cls` needs an `image_reader`, and images are read from folders of this machine, not from object"
        " stores.",
        "right: image_reader: {type: fs_pillow, kwargs: {image_dir: data/train, color_mode: RGB}}",
    ),
    "KD525": Explanation(
        "annotation file with something to derive",
        "Tools write COCO's json with ids as text or with a decimal point, without `area` or `iscrowd`, with"
        " polygons in place of boxes, or with annotations of images that were taken out of the list. All of that"
        " is read, the same way for training and evaluation, and told once, with its numbers.",
        'derived: {"id": "17"} is 17, no `area` is width x height, no `iscrowd` is 0',
    ),
    "KD520": Explanation(
        "images that hold no pictures",
        "The images looked at, evenly spread over the data, are each of one colour, or all have the same pixels:"
        " nothing in them tells the classes apart. Often the picture lies in an alpha channel, or in numbers of"
        " which only a few are used.",
        "right: image_reader: {type: fs_pillow, kwargs: {image_dir: data, background: white}}",
    ),
}
