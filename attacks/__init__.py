"""Attacks: one file each. `bench list attacks` shows them."""
