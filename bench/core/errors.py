"""The exceptions that end a command with one line: a wrong input, a failed check, a check that could not be made."""


class UserError(Exception):
    """A wrong input. The message is one line: what is wrong, what is allowed, what to do next (exit code 2)."""


class CheckError(Exception):
    """A measured result that fails a check. The message is one line (exit code 1)."""


class UncheckedError(Exception):
    """Nothing failed, but what had to be checked could not be. The message is one line (exit code 3)."""
