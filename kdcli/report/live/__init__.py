"""A training as the user sees it: the terminal, plain lines, the plan, progress."""
