"""Search spaces, one published space a file."""
