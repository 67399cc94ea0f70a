"""Order of the data, optimizers, schedules, the loop, checkpoints, the planner behind the dial."""
