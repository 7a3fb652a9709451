"""The commands, one per module: each composes the configuration, calls the library and prints."""
