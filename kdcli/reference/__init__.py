"""Texts made from the tables, without torch: methods, JSON Schema, the state of the installation."""
