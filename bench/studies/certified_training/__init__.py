"""Studies of certificates and certified training (thesis, chapter 3)."""
