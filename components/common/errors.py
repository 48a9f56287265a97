"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in what was given, or a server that cannot be reached: the command line prints it and exits with 2.

    The message is one sentence that names the file, key or address and says what to do.
    """
