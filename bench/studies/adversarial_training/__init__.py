"""Studies of adversarial training (thesis, chapter 4 and section 5.2.3)."""
