"""The stages of the main job, from configuration to files.

A stage checks and builds all it can in its constructor, and writes only in `run`: so whatever is wrong with a
configuration is found before the run's directory exists, and not after the hours of the stage before.
"""
