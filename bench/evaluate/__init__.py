"""Measuring a model, example by example."""
