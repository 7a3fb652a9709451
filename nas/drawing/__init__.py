"""Pictures of architectures: cells, lists, heat maps; as SVG, PNG and text. Imports neither torch nor numpy."""
