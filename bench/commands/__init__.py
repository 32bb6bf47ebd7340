"""The commands of `bench`, by subject. A module's `add` registers them; heavy imports are inside functions."""
