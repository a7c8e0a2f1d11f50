"""What runs and losses gave on record, bit for bit; `python -m tests.golden` records anew.

The bits depend on the processor and on torch, so each kind of machine has a record of its own. Where a change is
meant to alter them, record again in the same commit and say which and why. A machine without a record is compared
with another's to a tolerance; to compare bits there, record on the commit before the change first.
"""
