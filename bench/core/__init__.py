"""Interfaces, specs, records and tables. Imports no other package of the project."""
