"""What can end a command, told apart by its exit code. Nothing heavy is imported here."""


class UsageError(ValueError):
    """What was asked for cannot be done as it was asked. Nothing was changed."""


class Interrupted(Exception):
    """Training was asked to stop, and saved what it had."""


class Terminated(Interrupted):
    """The same, by SIGTERM: a machine that is taken away, say."""
