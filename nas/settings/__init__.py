"""From YAML to objects: schemas, dotted names, checks of signatures, allowed targets."""
