"""Reads files from untrusted sources. Accepts regular files and plain data only, and escapes text for display."""
