"""The commands of `bench`, by subject. A module's `add` hands them to the parser; heavy imports are inside acts."""
