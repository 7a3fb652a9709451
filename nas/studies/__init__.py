"""Studies compare methods over seeds, with baselines and statistics. Their tables list every run."""
