"""A run: built from a spec, trained, evaluated, saved and resumed."""
