"""Certifiers: one file each."""
