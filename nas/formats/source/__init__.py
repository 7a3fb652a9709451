"""Writes a trained network as a file of plain PyTorch: traces what it computes, and writes readable classes."""
