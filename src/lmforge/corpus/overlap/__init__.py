"""Which texts say the same thing, among themselves and with benchmarks."""
