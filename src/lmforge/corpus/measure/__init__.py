"""What a corpus is, in figures."""
