"""Counts in texts. Imports no torch."""


def counted(number: float, noun: str, plural: str = "") -> str:
    """`1 example`, `1,200 examples`. plural: of a noun that takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
