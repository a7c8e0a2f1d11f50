"""Small-image classifiers of the field's tables: whole models that return logits."""
