"""Machine code for what no library does well on a processor: products of few bits, whole steps of decoding."""
