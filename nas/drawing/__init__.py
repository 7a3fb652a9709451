"""Draws architectures as cells, lists and heat maps, in SVG, PNG and text. Imports neither torch nor numpy."""
