"""A user's own package: one of everything that a spec may name behind `--plugin mine_kd`."""
