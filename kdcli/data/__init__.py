"""Data by name: what a spec may write under `dataset`; torch-free."""

from __future__ import annotations

from kdcli.spec.in_memory import FROM_PYTHON
from kdcli.spec.tables import Table, Target

DATASETS: Table = {
    "cls": Target("kdcli.data.classification.meta_lists:cls"),
    "coco": Target("kdcli.data.detection.coco:coco"),
    "digits": Target("kdcli.data.classification.arrays:digits"),
    "fake": Target("kdcli.data.classification.arrays:fake"),
    "fashion_mnist": Target("kdcli.data.classification.arrays:fashion_mnist"),
    FROM_PYTHON: Target("kdcli.data.classification.in_memory:from_python"),
    "image_folder": Target("kdcli.data.classification.image_folder:image_folder"),
}
"""Datasets; `torchvision.<Dataset>` besides (kdcli/data/classification/torchvision_datasets.py)."""

TRANSFORMS: Table = {
    "color_jitter": Target("kdcli.data.transforms.pixels:DetectionColorJitter"),
    "crop": Target("kdcli.data.transforms.boxes:Crop"),
    "custom_to_tensor": Target("kdcli.data.transforms.pixels:CustomToTensor"),
    "cutout": Target("kdcli.data.transforms.pixels:Cutout"),
    "fix_output_resize": Target("kdcli.data.transforms.boxes:FixOutputResize"),
    "flip": Target("kdcli.data.transforms.boxes:Flip"),
    "grayscale": Target("kdcli.data.transforms.pixels:Grayscale"),
    "keep_ar_resize": Target("kdcli.data.transforms.boxes:KeepArResize"),
    "keep_ar_resize_max": Target("kdcli.data.transforms.boxes:KeepArResizeMax"),
    "normalize": Target("kdcli.data.transforms.pixels:Normalize"),
    "stitch_expand": Target("kdcli.data.transforms.boxes:StitchExpand"),
    "to_rgb": Target("kdcli.data.transforms.pixels:ToRgb"),
    "to_tensor": Target("kdcli.data.transforms.pixels:ToTensor"),
    "torch_auto_augmentation": Target("kdcli.data.transforms.augment:AutoAugment"),
    "torch_center_crop": Target("kdcli.data.transforms.geometry:CenterCrop"),
    "torch_color_jitter": Target("kdcli.data.transforms.pixels:ColorJitter"),
    "torch_pad": Target("kdcli.data.transforms.geometry:Pad"),
    "torch_randerase": Target("kdcli.data.transforms.augment:RandomErasing"),
    "torch_random_augmentation": Target("kdcli.data.transforms.augment:RandAugment"),
    "torch_random_augmentationIncre": Target("kdcli.data.transforms.augment:IncreasingRandAugment"),
    "torch_random_crop": Target("kdcli.data.transforms.geometry:RandomCrop"),
    "torch_random_horizontal_flip": Target("kdcli.data.transforms.geometry:RandomHorizontalFlip"),
    "torch_random_resized_crop": Target("kdcli.data.transforms.geometry:RandomResizedCrop"),
    "torch_resize": Target("kdcli.data.transforms.geometry:Resize"),
}
"""Transforms of images; `torchvision.<Name>` (transforms v2) besides."""

BATCH_FNS: Table = {
    "batch_cutmix": Target("kdcli.data.classification.mixing:Cutmix"),
    "batch_cutmixup": Target("kdcli.data.classification.mixing:CutMixup"),
    "batch_mixup": Target("kdcli.data.classification.mixing:Mixup"),
}

IMAGE_READERS: Table = {
    "ceph_opencv": Target("kdcli.data.image_readers:OpencvReader"),
    "fs_opencv": Target("kdcli.data.image_readers:OpencvReader"),
    "fs_pillow": Target("kdcli.data.image_readers:PillowReader"),
}

SAMPLERS: Table = {
    "dist": Target("kdcli.data.order:Dist"),
    "local": Target("kdcli.data.order:Local"),
}

EVALUATORS: Table = {
    "COCO": Target("kdcli.data.evaluators:coco"),
    "imagenet": Target("kdcli.data.evaluators:imagenet"),
    "imagenet_lt": Target("kdcli.data.evaluators:imagenet_lt"),
}
"""What `evaluator.type` may be, with its arguments; the metrics themselves are in tasks/."""
