"""The spec: YAML text to a frozen, checked Spec; nothing here imports torch."""
