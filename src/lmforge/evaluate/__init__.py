"""Model → scores."""
