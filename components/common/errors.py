"""The exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in what was given, or a server that cannot be reached: the command line prints it and exits with 2.

    The message is one sentence that names the file, key or address and says what to do.
    """


class SharedError(UserError):
    """A mistake that all processes of a training know of: one of them, of rank 0, says so."""
