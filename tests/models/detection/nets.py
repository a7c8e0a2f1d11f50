"""Small Faster R-CNN and RetinaNet specs, with the nested blocks that United-Perception's specs have."""

from __future__ import annotations

from typing import Any

import torch

from kdcli.models.network import Network, build_network
from kdcli.spec.schema import ModuleSpec

NORMALIZE = {"means": [0, 0, 0, 0], "stds": [0.1, 0.1, 0.2, 0.2]}


def rpn_cfg(**changes: Any) -> dict[str, Any]:
    """The cfg of `rpn_post`."""

    def predictor(top_n: int) -> dict[str, Any]:
        return {
            "roi_predictor": {
                "type": "base",
                "kwargs": {
                    "pre_nms_score_thresh": 0.0,
                    "pre_nms_top_n": top_n,
                    "post_nms_top_n": 100,
                    "roi_min_size": 0,
                    "nms": {"type": "naive", "nms_iou_thresh": 0.7},
                    "merger": {"type": "rpn", "kwargs": {"top_n": 100}},
                },
            }
        }

    return {
        "cls_loss": {"type": "sigmoid_cross_entropy"},
        "loc_loss": {"type": "l1_loss"},
        "anchor_generator": {
            "type": "hand_craft",
            "kwargs": {"anchor_ratios": [0.5, 1, 2], "anchor_scales": [4]},
        },
        "roi_supervisor": {
            "type": "rpn",
            "kwargs": {
                "allowed_border": -1,
                "matcher": {
                    "type": "max_iou",
                    "kwargs": {
                        "positive_iou_thresh": 0.7,
                        "negative_iou_thresh": 0.3,
                        "ignore_iou_thresh": 0.5,
                        "allow_low_quality_match": True,
                        "low_quality_thresh": 0.3,
                    },
                },
                "sampler": {"type": "naive", "kwargs": {"batch_size": 64, "positive_percent": 0.5}},
            },
        },
        "train": predictor(200),
        "test": predictor(100),
        **changes,
    }


def bbox_pre_cfg() -> dict[str, Any]:
    """The cfg of `BboxFC_Pre`."""
    return {
        "bbox_supervisor": {
            "type": "faster",
            "kwargs": {
                "bbox_normalize": NORMALIZE,
                "matcher": {
                    "type": "max_iou",
                    "kwargs": {
                        "ignore_iou_thresh": 0.5,
                        "positive_iou_thresh": 0.5,
                        "negative_iou_thresh": 0.5,
                        "allow_low_quality_match": False,
                        "low_quality_thresh": 0.5,
                    },
                },
                "sampler": {"type": "naive", "kwargs": {"batch_size": 64, "positive_percent": 0.25}},
            },
        },
        "fpn": {"fpn_levels": [0, 1, 2, 3], "base_scale": 56},
        "roipooling": {"method": "roialignpool", "pool_size": 7, "sampling_ratio": 0},
    }


def bbox_post_cfg(**predictor: Any) -> dict[str, Any]:
    """The cfg of `bbox_post`."""
    return {
        "cls_loss": {"type": "softmax_cross_entropy", "kwargs": {"class_dim": -1}},
        "loc_loss": {"type": "l1_loss"},
        "share_location": False,
        "bbox_normalize": NORMALIZE,
        "bbox_predictor": {
            "type": "faster",
            "kwargs": {
                "bbox_normalize": NORMALIZE,
                "share_location": False,
                "nms": {"type": "naive", "nms_iou_thresh": 0.5},
                "bbox_score_thresh": 0.0,
                "top_n": 100,
                **predictor,
            },
        },
    }


def faster_rcnn(num_classes: int = 4, planes: int = 16, depth: int = 18) -> list[ModuleSpec]:
    """The modules of a small Faster R-CNN."""
    rows: list[tuple[str, str, dict[str, Any], str | None]] = [
        (
            "backbone",
            f"resnet{depth}",
            {
                "out_layers": [1, 2, 3, 4],
                "out_strides": [4, 8, 16, 32],
                "normalize": {"type": "freeze_bn"},
                "initializer": {"method": "msra"},
            },
            None,
        ),
        (
            "neck",
            "FPN",
            {
                "outplanes": planes,
                "start_level": 2,
                "num_level": 5,
                "out_strides": [4, 8, 16, 32, 64],
                "downsample": "pool",
                "upsample": "nearest",
                "initializer": {"method": "xavier"},
            },
            "backbone",
        ),
        (
            "roi_head",
            "NaiveRPN",
            {
                "feat_planes": planes,
                "num_classes": 2,
                "num_anchors": 3,
                "class_activation": "sigmoid",
                "num_level": 5,
                "initializer": {"method": "normal", "std": 0.01},
            },
            "neck",
        ),
        ("post_process", "rpn_post", {"num_classes": 2, "cfg": rpn_cfg()}, "roi_head"),
        ("bbox_head_pre_process", "BboxFC_Pre", {"cfg": bbox_pre_cfg(), "with_drp": False}, None),
        (
            "bbox_head",
            "BboxFC",
            {
                "feat_planes": 32,
                "num_classes": num_classes,
                "initializer": {"method": "msra"},
                "cfg": {
                    "class_activation": "softmax",
                    "roipooling": bbox_pre_cfg()["roipooling"],
                    "share_location": False,
                },
            },
            "neck",
        ),
        ("bbox_head_post_process", "bbox_post", {"cfg": bbox_post_cfg()}, None),
    ]
    return [ModuleSpec(name=n, type=t, kwargs=k, prev=p) for n, t, k, p in rows]


RETINA_MATCHER = {
    "type": "max_iou",
    "kwargs": {
        "positive_iou_thresh": 0.5,
        "negative_iou_thresh": 0.4,
        "ignore_iou_thresh": 0.5,
        "allow_low_quality_match": True,
        "low_quality_thresh": 0.0,
    },
}


def retinanet(num_classes: int = 4, planes: int = 16, depth: int = 18) -> list[ModuleSpec]:
    """The modules of a small RetinaNet."""
    backbone = faster_rcnn(num_classes, planes, depth)[0]
    kwargs = {**backbone.kwargs, "out_layers": [2, 3, 4], "out_strides": [8, 16, 32]}
    cfg = {
        "cls_loss": {"type": "sigmoid_focal_loss", "kwargs": {"num_classes": num_classes}},
        "loc_loss": {"type": "smooth_l1_loss", "kwargs": {"sigma": 3.0}},
        "anchor_generator": {
            "type": "hand_craft",
            "kwargs": {"anchor_ratios": [0.5, 1, 2], "anchor_scales": [4, 5.04, 6.35]},
        },
        "roi_supervisor": {
            "type": "retina",
            "kwargs": {"allowed_border": -1, "matcher": RETINA_MATCHER, "sampler": {"type": "keep_all"}},
        },
        "test": {
            "roi_predictor": {
                "type": "base",
                "kwargs": {
                    "pre_nms_score_thresh": 0.0,
                    "pre_nms_top_n": 100,
                    "post_nms_top_n": 100,
                    "roi_min_size": 0,
                    "merger": {
                        "type": "retina",
                        "kwargs": {"top_n": 50, "nms": {"type": "naive", "nms_iou_thresh": 0.5}},
                    },
                },
            }
        },
    }
    neck = {
        "outplanes": planes,
        "start_level": 3,
        "num_level": 5,
        "out_strides": [8, 16, 32, 64, 128],
        "downsample": "conv",
        "upsample": "nearest",
    }
    head = {"feat_planes": planes, "num_classes": num_classes, "num_anchors": 9, "num_level": 5}
    return [
        backbone.model_copy(update={"kwargs": kwargs}),
        ModuleSpec(name="neck", type="FPN", kwargs=neck, prev="backbone"),
        ModuleSpec(name="roi_head", type="RetinaSubNet", kwargs=head, prev="neck"),
        ModuleSpec(name="post_process", type="retina_post", kwargs={"num_classes": num_classes, "cfg": cfg}),
    ]


COMPOSED = {
    "type": "compose_loc_loss",
    "kwargs": {
        "loss_cfg": [{"type": "iou_loss", "kwargs": {"loss_type": "giou"}}, {"type": "l1_loss", "kwargs": {}}]
    },
}


def improved(
    num_classes: int = 4, planes: int = 16, depth: int = 18, iou: bool = False, ota: bool = False
) -> list[ModuleSpec]:
    """The modules of a small RetinaNet with United-Perception's improvements; iou: with an IoU branch."""
    backbone, neck, head, post = retinanet(num_classes, planes, depth)
    cfg = dict(post.kwargs["cfg"])
    cfg["cls_loss"] = {"type": "quality_focal_loss", "kwargs": {"gamma": 2.0}}
    cfg["loc_loss"] = COMPOSED if iou else {"type": "iou_loss", "kwargs": {"loss_type": "giou"}}
    cfg["anchor_generator"] = {
        "type": "hand_craft",
        "kwargs": {"anchor_ratios": [1], "anchor_scales": [3, 4]},
    }
    cfg["roi_supervisor"] = {"type": "atss", "kwargs": {"top_n": 18, "use_iou": iou}}
    if ota:
        matcher = {"type": "retina_ota", "kwargs": {"num_classes": num_classes}}
        cfg["roi_supervisor"] = {
            "type": "retina_ota",
            "kwargs": {"num_classes": num_classes, "matcher": matcher},
        }
    if iou:
        cfg["iou_branch_loss"] = {"type": "sigmoid_cross_entropy"}
    kind, post_kind = (
        ("RetinaHeadWithBNIOU", "retina_post_iou") if iou else ("RetinaHeadWithBN", "retina_post")
    )
    own = {**head.kwargs, "num_anchors": 2, "normalize": {"type": "solo_bn"}}
    return [
        backbone,
        neck.model_copy(update={"kwargs": {**neck.kwargs, "normalize": {"type": "solo_bn"}}}),
        head.model_copy(update={"type": kind, "kwargs": own}),
        post.model_copy(update={"type": post_kind, "kwargs": {"num_classes": num_classes, "cfg": cfg}}),
    ]


def with_res5(modules: list[ModuleSpec]) -> list[ModuleSpec]:
    """A Faster R-CNN with layer4 as its second stage's head, in place of the pyramid."""
    backbone, _, rpn, post, pre, head, bbox_post = modules
    own = {**backbone.kwargs, "out_layers": [3], "out_strides": [16]}
    pre_cfg = {key: value for key, value in pre.kwargs["cfg"].items() if key != "fpn"}
    head_kwargs = {key: value for key, value in head.kwargs.items() if key != "feat_planes"}
    return [
        backbone.model_copy(update={"kwargs": own}),
        rpn.model_copy(update={"prev": "backbone", "kwargs": {**rpn.kwargs, "num_level": 1}}),
        post,
        pre.model_copy(update={"type": "BboxRes5_Pre", "kwargs": {"cfg": pre_cfg}}),
        head.model_copy(
            update={
                "type": "BboxRes5",
                "prev": "backbone",
                "kwargs": {**head_kwargs, "backbone": backbone.type},
            }
        ),
        bbox_post,
    ]


def build(modules: list[ModuleSpec], aligned: bool = False) -> Network:
    """The network, seeded."""
    torch.manual_seed(0)
    return build_network(modules, path=("net",), aligned=aligned)


def batch(size: int = 96) -> dict[str, Any]:
    """Two images, one of them smaller and padded."""
    generator = torch.Generator().manual_seed(3)
    boxes = [
        torch.tensor([[10.0, 12.0, 50.0, 60.0, 1.0], [40.0, 30.0, 90.0, 80.0, 3.0]]),
        torch.tensor([[5.0, 5.0, 37.0, 40.0, 2.0]]),
    ]
    return {
        "image": torch.randn(2, 3, size, size, generator=generator),
        "boxes": boxes,
        "ignores": [torch.zeros(0, 4), torch.tensor([[50.0, 50.0, 70.0, 70.0]])],
        "image_info": [(96.0, 96.0, 1.0, 1.0, 96.0, 96.0), (80.0, 96.0, 1.0, 1.0, 80.0, 96.0)],
        "indices": torch.tensor([0, 1]),
        "image_ids": [7, 9],
    }
