"""The stages of the main job, from configuration to files.

A stage checks and builds all it can in its constructor and writes only in `run`. So a wrong configuration is found
before the run's directory exists, and before the hours of an earlier stage.
"""
