"""The one exception that users are meant to read."""


class UserError(ValueError):
    """Bad input from outside: names the file or setting, what was expected and found, what to do.

    The command line prints its text as one paragraph, without a traceback, and exits with status 2.

    With `at_once` it does not wait for other threads.
    """

    at_once = False
