"""The search: what it alternates, draws, learns and derives."""
