"""The exceptions that mean "the user can mend this", and "try again"."""


class UserError(ValueError):
    """A mistake in what was given, or a server that cannot be reached: the command line prints it and exits with 2.

    The message is one sentence that names the file, key or address and says what to do.
    """

    temporary = False  # whether the same command may succeed later, without any change


class TemporaryError(UserError):
    """A server that does not answer at present, or a lock that another process holds: a step of a pipeline tries again."""

    temporary = True


class SharedError(UserError):
    """A mistake that all processes of a training know of: one of them, of rank 0, says so."""
