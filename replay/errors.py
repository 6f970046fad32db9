"""The base of the errors that are meant for users. Imports nothing, so that every part can derive from it."""


class QherdError(Exception):
    """An error whose message is written for the user: ``qherd`` prints it without a traceback.

    Other exceptions that reach the command line are defects, and show their traceback.
    """

    exit_code = 2
    """Of the command that it ends: 2 where the call or what it needs is wrong, 1 where a run failed."""
