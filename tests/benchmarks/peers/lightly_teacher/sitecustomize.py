"""ImageNet's Lite0 under names of its own, for a command whose PYTHONPATH has this folder; it imports timm alone.

lightly-train 0.18 reads a timm network's maps by `forward_intermediates`, and how many channels they have by
`num_features`. An EfficientNet has 1,280 features behind `conv_head` and 320 in its last block's map, so
`timm/tf_efficientnet_lite0` stops in the first step. `lite0_head` gives the 1,280 as maps, `lite0_block` says 320.
"""

import timm
from timm.models import register_model


@register_model
def lite0_head(**kwargs):
    """Maps of 1,280 channels, behind `conv_head`."""
    net = timm.create_model("tf_efficientnet_lite0", **_known(kwargs))
    net.forward_intermediates = lambda images, **_: [net.forward_features(images)]
    return net


@register_model
def lite0_block(**kwargs):
    """Maps of 320 channels, of the last block."""
    net = timm.create_model("tf_efficientnet_lite0", **_known(kwargs))
    net.num_features = 320
    return net


def _known(kwargs):
    """What names the registered network itself is left out."""
    return {name: value for name, value in kwargs.items() if not name.startswith("pretrained_cfg")}
