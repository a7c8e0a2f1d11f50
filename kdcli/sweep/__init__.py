"""A sweep: trials of one spec with other values, sampled, halved and stored by Optuna (extra `sweep`)."""
