"""The README's pictures, made by `python -m tests.pictures`."""
