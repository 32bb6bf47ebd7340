"""Contract tests that plugins inherit."""
