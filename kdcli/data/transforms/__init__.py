"""Transforms of images: each works on a batch of one size, with random numbers from counters."""
