"""Codes of what commands make and are given beside a spec: data that is composed, folders and networks to distil."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

COMMANDS: dict[str, Explanation] = {
    "KD835": Explanation(
        "a sweep without Optuna",
        "`kdcli sweep` leaves the choice of values and the storage of trials to Optuna, which is an extra.",
        "pip install 'kdcli[sweep]'",
    ),
    "KD836": Explanation(
        "a folder that holds another sweep",
        "Trials of one storage are compared with each other: they have one spec, one space, one share held out and one"
        " seed. More trials of the same sweep may be asked for at any time.",
        "wrong: --dir runs/first with another `sweep` block\nright: --dir runs/second",
    ),
    "KD837": Explanation(
        "nothing to sweep by default",
        "Without a `sweep` block the loss weight of each job, the temperature and the learning rate are tried. This"
        " spec has none of them as a number.",
        "right: sweep: {trainer.optimizer.kwargs.lr: [0.01, 0.1]}",
    ),
    "KD838": Explanation(
        "a sweep without a whole trial",
        "A trial that fails is recorded, and the others go on; where the first three have all failed, the others would"
        " too. A sweep whose trials have all failed or were stopped has no best one.",
        "look at the trial's train.log and error.txt, or run `kdcli train` with its values",
    ),
    "KD839": Explanation(
        "equal cost of a run with stages",
        "A trial whose step costs more than the student's alone is made shorter by as much, its schedule too. Of"
        " several stages it is not known which should be.",
        "kdcli sweep cfg.yaml --equal steps",
    ),
    "KD855": Explanation(
        "baseline of another experiment",
        "`report --baseline RUN` lays another run beside this one. The two were measured on other test samples, or by"
        " another metric: the difference of their figures would say nothing.",
        "kdcli report runs/digits_kd --baseline runs/digits_student, with one dataset.test in both",
    ),
    "KD810": Explanation(
        "no cut-out photograph in a class, or of no class",
        "`kdcli make-data stamp-scenes` lays stamps on photographs: images with alpha whose object is opaque and whose"
        " other pixels are transparent. An image without alpha would be laid there as a rectangle. Of the folders of"
        " `--unlabelled-stamps` what a class has too is left out, since it may be held out.",
        "kdcli make-data stamp-scenes data/scenes --stamps cutouts    # cutouts/cat/1.png, cutouts/dog/1.png",
    ),
    "KD811": Explanation(
        "too few stamps of a class",
        "No stamp of training is in a validation or test image, so that a class needs one for each of them; copies and"
        " mirror images are told by their pixels and count once.",
        "right: leave the class out, add stamps, or make no validation images (`--num-val 0`)",
    ),
    "KD812": Explanation(
        "too few backgrounds",
        "No background of training is in a validation or test image, so that one is needed for each of them; copies"
        " and other sizes of a photograph count once.",
        "kdcli make-data stamp-scenes data/scenes --backgrounds ~/Pictures",
    ),
    "KD860": Explanation(
        "too few images to divide",
        "`split` of `image_folder` divides the images of each class into a training and a test part by the names of the"
        " files, and each part needs one image.",
        "right: two images or more in each class folder, or folders of their own: images/train, images/test",
    ),
    "KD861": Explanation(
        "folder without images",
        "`--data` names a folder with images: one folder a class, with or without `train` and `val` or `test` above"
        " them; images in any folders where they have no labels; or a COCO annotation file beside its images.",
        "images/train/cat/1.jpg, images/val/cat/2.jpg\nor: images/cat/1.jpg\nor: images/1.jpg",
    ),
    "KD862": Explanation(
        "one class alone",
        "A classifier tells classes apart, each of which is one folder. With a single folder every answer is right.",
        "right: images/cat, images/dog\nor: kdcli distill ... --no-labels, which learns of the teacher alone",
    ),
    "KD863": Explanation(
        "a side of the data that is missing",
        "There are images to measure on and none to train on, or COCO annotations of one side alone: boxes are not"
        " divided by chance, as images of one scene would come into both parts.",
        "right: data/train.json and data/val.json",
    ),
    "KD864": Explanation(
        "teacher without weights",
        "A teacher that has learnt nothing teaches nothing. Weights are a file of its state dict, or published weights"
        " by name, before the `@`; what a run of kdcli trained is named by the run's folder.",
        "wrong: --teacher torchvision.resnet18\nright: --teacher teacher.pth@torchvision.resnet18\n"
        "right: --teacher runs/teacher",
    ),
    "KD865": Explanation(
        "teacher of other classes",
        "A teacher's logits teach where they are about the same classes as the data. Classes are compared by name"
        " where the weights state names, else by their number. A network that knows other classes is fine-tuned on"
        " yours first.",
        "wrong: ImageNet's 1000 classes for eight folders\nright: kdcli init --from --student"
        " torchvision:DEFAULT@torchvision.resnet18 --data images, then kdcli train",
    ),
    "KD866": Explanation(
        "no recipe for these networks and this data",
        "`kdcli distill` takes the recipe of a sample spec by task, labels and kind of teacher: classifiers for class"
        " folders, detectors for boxes, networks with features for images without labels. Other combinations are"
        " written by hand.",
        "wrong: --teacher runs/classifier with a COCO folder\nright: kdcli init, which lists the samples",
    ),
}
