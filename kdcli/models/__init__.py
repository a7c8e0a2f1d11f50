"""Networks: modules by name, run in order.

MODULES maps the names a spec may give as `type` to code; this file never imports torch.
"""

from __future__ import annotations

from kdcli.spec.in_memory import FROM_PYTHON
from kdcli.spec.tables import Target

RESNET = "kdcli.models.backbones.resnet:ResNet"
CIFAR_RESNET = "kdcli.models.cifar.resnet:CifarResNet"
CIFAR_DEEP_RESNET = "kdcli.models.cifar.deep_resnet:DeepCifarResNet"
WIDE_RESNET = "kdcli.models.cifar.wide_resnet:WideResNet"
VGG = "kdcli.models.cifar.vgg:Vgg"
RESNET_D = "kdcli.models.backbones.resnet_d:ResNetD"
REGNET = "kdcli.models.backbones.regnet:RegNet"
EFFICIENTNET = "kdcli.models.backbones.efficientnet:efficientnet"
CONVNEXT = "kdcli.models.backbones.convnext:ConvNeXt"
SWIN = "kdcli.models.backbones.swin:Swin"
CSWIN = "kdcli.models.backbones.cswin:CSWin"
VISION_TRANSFORMER = "kdcli.models.backbones.vision_transformer:VisionTransformer"
STAGES = "kdcli.models.backbones.torchvision_backbones:TorchvisionStages"
VIT = "kdcli.models.backbones.torchvision_backbones:TorchvisionVit"

BACKBONES: dict[str, Target] = {
    **{f"resnet{depth}": Target(RESNET, {"depth": depth}) for depth in (18, 34, 50, 101, 152)},
    "resnet_custom": Target(RESNET, {"depth": None}),
    "xmnet": Target("kdcli.models.backbones.xmnet:XMNet"),
    "mobilenet_v2": Target(STAGES, {"name": "mobilenet_v2"}),
    **{
        name: Target(STAGES, {"name": name, "width_mult": None})
        for name in (
            *(f"efficientnet_v2_{size}" for size in "sml"),
            *(f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
            *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
        )
    },
    **{name: Target(VIT, {"name": name}) for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")},
    **{f"resnet{depth}_D": Target(RESNET_D, {"depth": depth}) for depth in (18, 34, 50, 101, 152)},
    "resnet_custom_D": Target(RESNET_D, {"depth": None}),
    "mobilenetv2": Target("kdcli.models.backbones.mobilenet:MobileNetV2"),
    "mobilenetv3": Target("kdcli.models.backbones.mobilenet:MobileNetV3"),
    **{
        name: Target(REGNET, {"name": name})
        for kind in "xy"
        for size in (200, 400, 600, 800, 1600, 3200, 4000, 6400)
        for name in (f"regnet{kind}_{size}m",)
    },
    **{name: Target(EFFICIENTNET, {"name": name}) for name in (f"efficientnet_b{size}" for size in range(8))},
    **{
        name: Target(CONVNEXT, {"name": name})
        for name in (f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge"))
    },
    **{
        name: Target(SWIN)
        for name in (
            "swin_tiny",
            "swin_small",
            "swin_base_224",
            "swin_base_384",
            "swin_large_224",
            "swin_large_384",
        )
    },
    **{
        name: Target(CSWIN, {"name": name})
        for name in (
            *("CSWin_64_12211_tiny_224", "CSWin_64_24322_small_224", "CSWin_96_24322_base_224"),
            *("CSWin_144_24322_large_224", "CSWin_96_24322_base_384", "CSWin_144_24322_large_384"),
        )
    },
    **{
        name: Target(VISION_TRANSFORMER, {"name": name})
        for name in (
            *(
                "vit_base_patch32_224",
                "vit_base_patch16_224",
                "vit_large_patch16_224",
                "vit_huge_patch14_224",
            ),
            *("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"),
        )
    },
}

SMALL_IMAGE_MODELS: dict[str, Target] = {
    **{
        f"cifar_resnet{depth}": Target(CIFAR_RESNET, {"depth": depth, "wide": False})
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{f"cifar_resnet{depth}x4": Target(CIFAR_RESNET, {"depth": depth, "wide": True}) for depth in (8, 32)},
    **{
        f"wrn_{depth}_{width}": Target(WIDE_RESNET, {"depth": depth, "width": width})
        for depth in (16, 40)
        for width in (1, 2)
    },
    **{f"vgg{depth}": Target(VGG, {"depth": depth}) for depth in (8, 11, 13, 16, 19)},
    "mobilenetv2_half": Target("kdcli.models.cifar.mobilenetv2:MobileNetV2"),
    "shufflenetv1": Target("kdcli.models.cifar.shufflenet:ShuffleNetV1"),
    "shufflenetv2": Target("kdcli.models.cifar.shufflenet:ShuffleNetV2"),
    **{f"resnet{depth}_cifar": Target(CIFAR_DEEP_RESNET, {"depth": depth}) for depth in (18, 34, 50)},
}

CLASSIFICATION: dict[str, Target] = {
    "base_cls_head": Target("kdcli.models.heads:ClsHead"),
    "convnext_head": Target("kdcli.models.cls_heads:ConvNeXtHead"),
    "vit_head": Target("kdcli.models.cls_heads:ViTHead"),
    "base_cls_postprocess": Target("kdcli.models.heads:ClsPostProcess"),
    "ADAP": Target("kdcli.models.adapt:Adapt"),
    "peer": Target("kdcli.models.heads:Peer"),
}

DETECTION: dict[str, Target] = {
    "FPN": Target("kdcli.models.detection.fpn:FPN"),
    "NaiveRPN": Target("kdcli.models.detection.heads:NaiveRPN"),
    "RetinaSubNet": Target("kdcli.models.detection.heads:RetinaSubNet"),
    "RetinaHeadWithBN": Target("kdcli.models.detection.heads:RetinaHeadWithBN"),
    "RetinaHeadWithIOU": Target("kdcli.models.detection.heads:RetinaHeadWithIOU"),
    "RetinaHeadWithBNIOU": Target("kdcli.models.detection.heads:RetinaHeadWithBNIOU"),
    "rpn_post": Target("kdcli.models.detection.dense_post:RpnPost"),
    "retina_post": Target("kdcli.models.detection.dense_post:RetinaPost"),
    "retina_post_iou": Target("kdcli.models.detection.dense_post:RetinaPostIou"),
    "BboxFC_Pre": Target("kdcli.models.detection.roi_pool:BboxFCPre"),
    "BboxFC": Target("kdcli.models.detection.heads:BboxFC"),
    "BboxRes5_Pre": Target("kdcli.models.detection.roi_pool:BboxFCPre"),
    "BboxRes5": Target("kdcli.models.detection.heads:BboxRes5"),
    "bbox_post": Target("kdcli.models.detection.bbox_post:BboxPost"),
}

IN_MEMORY: dict[str, Target] = {FROM_PYTHON: Target("kdcli.models.in_memory:from_python")}

MODULES: dict[str, Target] = {
    **BACKBONES,
    **SMALL_IMAGE_MODELS,
    **CLASSIFICATION,
    **DETECTION,
    **IN_MEMORY,
}
"""`torchvision.<name>`, `timm.<name>` and `package.module:attribute` are types as well."""
