"""Submissions and contests. The only room that reads untrusted files."""
