"""Tables of papers beside our own figures: `bench study reproduce`."""
