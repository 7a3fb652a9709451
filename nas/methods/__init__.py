"""How a search learns its architecture."""
