"""Submissions and contests. The only package that reads untrusted files."""
