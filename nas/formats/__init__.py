"""The files an exported network is written as, one format a module."""
