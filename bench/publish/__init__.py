"""Submissions and contests. This is the only package that reads untrusted files."""
