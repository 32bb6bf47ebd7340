"""Defenses: one file a method. `bench list defenses` shows them."""
