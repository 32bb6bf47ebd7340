"""Studies of reflected-loss.txt."""
