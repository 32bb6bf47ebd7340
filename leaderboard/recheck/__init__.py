"""An independent checker of proofs: numpy and float64, no torch, no code of the certifiers."""
