"""Detection: anchors, targets, heads and post-processing."""
