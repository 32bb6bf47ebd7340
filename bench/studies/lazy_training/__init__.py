"""Studies of "Adversarial Robustness is at Odds with Lazy Training" (Wang et al., 2022)."""
