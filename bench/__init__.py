"""robust-bracket: the framework around attacks, certifiers and defenses."""
