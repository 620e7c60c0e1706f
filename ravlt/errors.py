"""The exception for everything that a user can correct."""


class RAVLTError(ValueError):
    """A mistake in a config, a file or a command line.

    The message is one sentence that says what is wrong and what to do, and names
    the file or key. The command lines in ``tools/`` print it without a traceback.
    """
