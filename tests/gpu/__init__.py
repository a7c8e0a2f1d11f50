"""Everything that a GPU has to prove of kdcli: `python -m tests.gpu`."""
