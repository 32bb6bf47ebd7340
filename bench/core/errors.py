"""The two exceptions that end a command with one line: a wrong input, and a check that failed."""


class UserError(Exception):
    """A wrong input. The message is one line: what is wrong, what is allowed, what to do next (exit code 2)."""


class CheckError(Exception):
    """A measured result that fails a check. The message is one line (exit code 1)."""
