"""The tasks, a file a family. One that is new is imported here, which registers it."""

from lmforge.evaluate.tasks import answers, baseline, code, language, passkey, speed

__all__ = ["answers", "baseline", "code", "language", "passkey", "speed"]
