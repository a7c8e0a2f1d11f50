"""The text of a spec: its lines, nodes with positions, includes and overrides."""
