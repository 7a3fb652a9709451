"""What scripts/bench_step is made of."""
