"""Necks: what brings a backbone's features to one width."""
