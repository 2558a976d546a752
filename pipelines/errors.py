"""What can end a command, told apart by its exit code. Nothing heavy is imported here."""

FAILURE, USAGE, LOST, INTERRUPTED, TERMINATED = 1, 2, 75, 130, 143


class UsageError(ValueError):
    """What was asked for cannot be done as it was asked. Nothing was changed."""


class Interrupted(Exception):
    """Training was asked to stop, and saved what it had."""


class Terminated(Interrupted):
    """The same, by SIGTERM: a machine that is taken away, say."""


class Termination(KeyboardInterrupt):
    """SIGTERM, as it comes: what lets a KeyboardInterrupt pass lets this one pass."""


class LostWorker(Exception):
    """Another process of the run is not there, or no more; to be started again, all may go on."""

    @property
    def told(self) -> str:
        """All that there is to say of it."""
        return f"another process {self}; all started again go on from there"
