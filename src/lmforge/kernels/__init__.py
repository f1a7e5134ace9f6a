"""Machine code for what no library does well on a processor: products of few bits, whole steps of decoding."""

import lmforge.kernels.reference  # noqa: F401  (checks each library before it is used)
