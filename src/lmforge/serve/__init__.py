"""Model → answers."""
