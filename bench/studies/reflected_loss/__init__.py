"""Studies of "Robustness Guarantees for Adversarially Trained Neural Networks" (anonymous, under review)."""
