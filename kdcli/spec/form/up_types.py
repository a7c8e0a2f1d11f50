"""Types that United-Perception has and kdcli has not, each with the reason that a user is told."""

from __future__ import annotations

YOLO = "it is one of United-Perception's YOLO detectors' own, which kdcli has not"
SEARCHED = (
    "it holds all networks that United-Perception's architecture search chooses from, and only the runner of that"
    " search trains it"
)
FOUND = "it is the form that United-Perception's architecture search gives its results"
MASKS = "it is for instance masks, and kdcli detects boxes"
OTHER_DETECTOR = "it belongs to a detector of United-Perception's that kdcli has not"
CROSS = "it is for training on several data sets that label different classes, and kdcli trains on one"
LVIS = (
    "LVIS looks for some of the classes only in each image, its score leaves out the others, and kdcli has COCO's"
    " score alone"
)
EQUALIZED = "it weighs the classes by the gradients they have had, and kdcli has that for classifiers only"

FOREIGN_TYPES = {
    **dict.fromkeys(
        (
            *("mosaic", "random_perspective", "random_perspective_yolox", "augment_hsv", "yolox_mixup_cv2"),
            *("yolox", "yolox_nano", "yolox_tiny", "yolox_s", "yolox_m", "yolox_l", "yolox_x", "multi_scale"),
            *("YoloxPAFPN", "DarknetPAFPN", "YoloXHead", "YoloXHeadShare", "yolox_post", "YoloXCosineLR"),
            *("yolov5s", "yolov5m", "yolov5l", "yolov5x", "DarkNetv5", "YoloV5Head", "yolov5_post", "yolov5"),
            *("EfficientRep", "RepPANNeck", "Effidehead", "Silu"),
        ),
        YOLO,
    ),
    **dict.fromkeys(
        ("big_resnet_basic", "big_regnet", "big_fpn", "BigRetinaHeadWithBN", "BigClsHead"), SEARCHED
    ),
    **dict.fromkeys(("dynamic_solo_bn", "dynamic_sync_bn", "xmnet_search"), SEARCHED),
    **dict.fromkeys(
        ("bignas_resnet_basic", "bignas_regnet", "bignas_fpn", "BignasRetinaHeadWithBN", "BignasClsHead"),
        FOUND,
    ),
    **dict.fromkeys(("CondinstHead", "condinst_post"), MASKS),
    **dict.fromkeys(("FcosHead", "fcos_post", "fcos", "onenet_post", "onenet", "range_crop"), OTHER_DETECTOR),
    **dict.fromkeys(("BboxRFCN", "BboxRFCN_Pre", "CascadeFC", "CascadeConvFC"), OTHER_DETECTOR),
    **dict.fromkeys(
        ("custom", "rank_custom"), "it reads United-Perception's own lists of boxes, and kdcli COCO's json"
    ),
    "MR": "it counts missed objects by false alarms, and kdcli has COCO's score alone",
    "cross_sigmoid_focal_loss": CROSS,
    **dict.fromkeys(("lvis", "lvisv1", "LVIS"), LVIS),
    **dict.fromkeys(("equalized_focal_loss", "equalized_quality_focal_loss"), EQUALIZED),
}
"""Types of United-Perception that kdcli has not, and why not, in words that follow "kdcli has no X `name`"."""
