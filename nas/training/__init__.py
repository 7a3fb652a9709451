"""Training one network: loop, task, metrics, schedules, evaluation."""
