"""The form of a spec: nodes brought into one shape, and typed."""
