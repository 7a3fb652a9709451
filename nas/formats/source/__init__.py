"""A trained network as a file of plain PyTorch: what is computed is traced, and written down as classes to be read."""
