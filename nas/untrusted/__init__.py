"""Reading what anybody may have written: regular files, plain data, text that is shown."""
