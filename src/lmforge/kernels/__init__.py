"""Machine code of our own for what no library does well on a processor: products of few bits, and whole steps of decoding."""
