"""The errors a user may meet. Each carries one clear line (where, cause, mend) and the exit status the command ends
with."""


class LmforgeError(Exception):
    """The work failed (exit status 1)."""

    exit_code = 1


class InputError(LmforgeError):
    """The input is wrong (exit status 2). The message names the file, line or key, then the cause, then the fix."""

    exit_code = 2


class DoesNotFit(LmforgeError):
    """The work is well-formed but too large for this machine (exit status 3)."""

    exit_code = 3


class Interrupted(LmforgeError):
    """Ctrl-C or SIGTERM arrived; state was saved and the message says how to go on (exit status 1)."""
