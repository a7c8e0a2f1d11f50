"""Heads: from features to logits, losses and predictions."""
