"""Run → one HTML page."""
