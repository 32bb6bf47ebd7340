"""Studies of first-order-adversaries.txt."""
