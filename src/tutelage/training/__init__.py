"""Training: the one loop, what it draws, and the run folder that survives an interruption at any moment."""
