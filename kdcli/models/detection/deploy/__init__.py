"""Detectors in a form for export: fixed sizes, no loop over images, no branch on values."""
