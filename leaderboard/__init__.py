"""Turns records into tables. Never imports torch."""
