"""Measures a model, example by example."""
