"""What frozen features are worth: k-NN and a linear probe on a small labelled set (`dataset.probe`)."""
