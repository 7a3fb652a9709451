"""Device, processes, precision, seeds, nonfinite numbers, functions of the user."""
