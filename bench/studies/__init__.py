"""Experiments that are neither a defense nor an attack: `bench study NAME`."""
