"""Builds objects from YAML: schemas, dotted names, checks of signatures, and the import paths that are allowed."""
