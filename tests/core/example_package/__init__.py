from . import used

__all__ = ["later", "used"]


def later():
    from .used_later import VALUE

    return VALUE
