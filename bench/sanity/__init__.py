"""Checks for evaluations that overestimate robustness."""
