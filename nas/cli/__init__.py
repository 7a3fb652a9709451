"""The commands, one a module: compose the configuration, call the library, print."""
