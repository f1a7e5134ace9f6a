"""Programs that a model wrote, run without network, without files outside a scratch folder, and within limits."""

from lmforge.evaluate.sandbox.run import Isolation, Limits, Outcome, isolation, run_program

__all__ = ["Isolation", "Limits", "Outcome", "isolation", "run_program"]
