"""What Python and the command line call: train, check, measure; `import kdcli` offers it (kdcli/__init__.py)."""
