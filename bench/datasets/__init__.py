"""Data sets: their arrays, their splits, and augmentation."""
