"""The checks of a spec: rules between fields, names against the tables, kwargs against signatures."""
