"""Studies of "Towards Understanding the Dynamics of the First-Order Adversaries" (Deng et al., 2020)."""
