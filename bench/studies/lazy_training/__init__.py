"""Studies of lazy-training.txt."""
