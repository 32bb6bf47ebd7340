"""Checking the evidence of a finished run again."""
