"""The proof of a spec before it runs: shapes, losses, files, training, on fake tensors."""
