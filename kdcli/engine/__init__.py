"""The run: build, train, evaluate, save; the only layer that knows every package."""
