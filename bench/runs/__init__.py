"""Requests, plans, runs and sweeps."""
