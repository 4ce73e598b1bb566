"""The one exception that bad input raises: it says what was wanted, what was got, and what to do."""

__all__ = ["MAWError"]


class MAWError(ValueError):
    """Bad input: a setting, a file, a host or a folder that cannot be used as given.

    The message is written for the person who typed the input; the command line prints it without a traceback and
    exits with status 2.

    >>> raise MAWError("depth must be at least 1, got 0: choose the number of view vectors per head")
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: depth must be at least 1, got 0: choose the number of view vectors per head
    """
