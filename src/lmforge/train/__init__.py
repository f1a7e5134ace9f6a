"""Shards + network → checkpoints."""
