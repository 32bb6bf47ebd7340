"""Architectures: one file each, built from torch's layers and bench.core.layers."""
