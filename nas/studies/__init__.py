"""Studies: methods x seeds, baselines, statistics, and tables that list every run."""
