"""Methods x seeds: what is run, baselines, statistics, and tables of every run."""
