"""Measurements of networks: layers and pairs of a spec, quality and cost of a run's networks, feature maps."""
