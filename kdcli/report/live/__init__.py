"""A training while it runs: the live screen, plain lines, the plan, and what records them."""
