"""Codes KD46x, KD56x and KD57x: mimic methods of detectors, annotations, boxes and the metric of detection."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

DETECTION: dict[str, Explanation] = {
    "KD460": Explanation(
        "network without class scores of positions",
        "FRS compares and weighs by the scores that a dense head (`NaiveRPN`, `RetinaSubNet`) gives at every"
        " position; a list that ends before the head gives none.",
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
    "KD560": Explanation(
        "no COCO annotation file",
        "`meta_file` names a json file with images, annotations and categories; this one is missing or is"
        " something else.",
        "meta_file: coco/annotations/instances_val2017.json",
    ),
    "KD561": Explanation(
        "annotation that makes no sense",
        "An annotation has no box and no polygon, names no image or a category that the file does not list, or has"
        " a `bbox`, `area` or `iscrowd` that is no such thing. What exporters leave out and can be derived is"
        " derived: KD525.",
        "right: {image_id: 3, category_id: 1, bbox: [x, y, width, height]}",
    ),
    "KD562": Explanation(
        "image entry that lacks something",
        "Every image has an id of its own, a whole number or a text, a file name, and its height and width in"
        " pixels.",
        "right: {id: 3, file_name: 000003.jpg, height: 480, width: 640}",
    ),
    "KD563": Explanation(
        "detector with other classes than the annotations",
        "A detector's head counts the categories of the annotation file and the background: with fewer it can't"
        " name them all, with more some are never learnt.",
        "COCO has 80 categories: num_classes: 81",
    ),
    "KD564": Explanation(
        "transform that leaves the boxes behind",
        "Moving pixels without their boxes would train on wrong boxes.",
        "right: flip, keep_ar_resize, to_tensor, normalize",
    ),
    "KD565": Explanation(
        "evaluation package missing",
        "The COCO metric is computed by a package that is not installed.",
        "the help line of the message names it",
    ),
    "KD566": Explanation(
        "results about other images",
        "Each image of the test set is evaluated exactly once, and only those of the annotation file are.",
        "evaluator: {type: COCO, kwargs: {gt_file: the same file as meta_file}}",
    ),
    "KD567": Explanation(
        "detections that can't be kept",
        "`kdcli eval` writes what was found to the file of `--save-predictions` and pictures to the folder of"
        " `--show`; one of them can't be written. Both are tried before anything runs.",
        "right: kdcli eval runs/scenes_student --save-predictions found.json --show pictures",
    ),
    "KD568": Explanation(
        "no box to measure by",
        "Average precision is the share of boxes that are found: without a box in the test annotations, or with"
        " crowds and boxes outside their image alone, there is nothing to tell.",
        "right: {image_id: 3, category_id: 1, bbox: [10, 10, 40, 40], iscrowd: 0}",
    ),
    "KD569": Explanation(
        "test category that was not trained on",
        "A detector learns the categories of the training file, and those of a test file are the same by their"
        " names, whatever their ids and order. One with another name can't be found. Where a file has a name"
        " twice, ids tell categories apart, and have to be the same in both files.",
        "wrong: {id: 1, name: dog} in the training file, {id: 1, name: dogs} in the test file\n"
        "right: {id: 1, name: dog} in the training file, {id: 7, name: dog} in the test file",
    ),
    "KD570": Explanation(
        "test file without some of the categories",
        "What a detector finds of a category that the test file does not list counts for nothing, and average"
        " precision is the mean over the others. This is only told.",
        "right: the same names in the `categories` of both files, in any order",
    ),
}
