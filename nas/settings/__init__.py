"""Makes objects from YAML: schemas, dotted names, checks of signatures, allowed targets."""
