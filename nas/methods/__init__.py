"""The search: what it does with a model that has choices in it."""
