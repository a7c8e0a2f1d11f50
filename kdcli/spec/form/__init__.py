"""The form of a spec: nodes brought into one shape, typed, and written out again."""
