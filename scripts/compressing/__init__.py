"""Compares ways to make a trained network smaller: the parts of scripts/compression_study."""
