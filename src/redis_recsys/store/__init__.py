"""What lies in Redis: every key name and every value layout is written and read here, and nowhere else."""
