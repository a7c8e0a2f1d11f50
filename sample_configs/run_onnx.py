"""Run an ONNX file of `kdcli export` without kdcli and torch: `python run_onnx.py FILE IMAGE...`.

Needs numpy, Pillow and onnxruntime. A transform that Pillow can't do likewise is refused, not guessed.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def preprocessed(file, preprocess):
    """The network's input [1, C, H, W] of an image file, as the ONNX file's metadata `preprocess` says."""
    pixels = Image.open(file).convert("L" if preprocess["color_mode"] == "GRAY" else "RGB")
    for step in preprocess["steps"]:
        kind, kwargs = step["type"].removeprefix("torchvision."), step["kwargs"]
        size = np.atleast_1d(kwargs.get("size", 0))
        if kind in ("torch_resize", "Resize") and kwargs["antialias"] and not kwargs["max_size"]:
            width, height = pixels.size
            short = min(width, height)
            wide, high = (int(size[0] * side / short) for side in (width, height))
            high, wide = (high, wide) if len(size) == 1 else map(int, size)
            how = Image.Resampling[kwargs["interpolation"].upper()]
            # In two steps, across first as torch does: Pillow would choose the order by size.
            pixels = pixels.resize((wide, height), how).resize((wide, high), how)
        elif kind in ("torch_center_crop", "CenterCrop"):
            left, top = (round((a - b) / 2) for a, b in zip(pixels.size, size[[-1, 0]], strict=True))
            pixels = pixels.crop((left, top, left + int(size[-1]), top + int(size[0])))
        elif kind in ("to_tensor", "custom_to_tensor"):
            pixels = np.asarray(pixels, np.float32) / (255 / preprocess["range"][1])
            pixels = pixels.reshape(*pixels.shape[:2], -1)[
                :, :, :: -1 if preprocess["color_mode"] == "BGR" else 1
            ]
        elif kind in ("normalize", "Normalize"):
            pixels = (pixels - np.float32(kwargs["mean"])) / np.float32(kwargs["std"])
        else:
            raise ValueError(f"do this step by hand: {step}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def main(model, images):
    """Print the likeliest class of each image."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    preprocess, names = json.loads(metadata["preprocess"]), json.loads(metadata["class_names"])
    for image in images:
        (logits,) = session.run(None, {"image": preprocessed(image, preprocess)})
        best = int(logits[0].argmax())
        print(image, names[best] if names else best, sep="\t")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
