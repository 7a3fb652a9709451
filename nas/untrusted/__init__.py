"""Reads files, data and text from untrusted sources: regular files, plain data, text to display."""
