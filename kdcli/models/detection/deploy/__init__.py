"""Detectors as they are taken away: fixed sizes, no loop over images, no branch on values."""
