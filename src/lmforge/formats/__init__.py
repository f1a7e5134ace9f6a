"""Models in and out: every format that a network is read from and written to."""
