"""Studies of "Convergence of Adversarial Training in Overparametrized Neural Networks" (Gao et al., 2019)."""
