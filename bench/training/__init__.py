"""The training loop, and code that several methods share."""
