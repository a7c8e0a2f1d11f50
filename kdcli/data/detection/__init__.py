"""Datasets of images with boxes."""
