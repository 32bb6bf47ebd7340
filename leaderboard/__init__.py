"""Records in; tables out. Never imports torch."""
