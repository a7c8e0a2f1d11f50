"""`python -m kdcli.cli`: the same as the console script."""

from kdcli.cli import main

main()
