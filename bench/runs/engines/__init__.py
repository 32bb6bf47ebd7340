"""Where the tasks of a sweep run: one file an engine."""
