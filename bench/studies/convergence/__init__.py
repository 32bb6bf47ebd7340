"""Studies of convergence-overparametrized.txt."""
