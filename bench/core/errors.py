"""The two ways a command ends badly: the user's mistake, and a check that failed."""


class UserError(Exception):
    """A mistake of the user's, in one line: what is wrong, what is allowed, what to do next (exit 2)."""


class CheckError(Exception):
    """Something that was measured is not as it must be, in one line (exit 1)."""
