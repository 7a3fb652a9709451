"""What a run leaves on the disk, and what it takes to leave it there."""
