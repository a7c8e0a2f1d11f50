"""`kdcli compare`: several runs side by side, as a table and as a plot."""
