"""Backbones: from an image to feature maps of several strides."""
