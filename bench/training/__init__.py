"""The training loop and what several methods share."""
