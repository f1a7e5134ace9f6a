"""Text → documents."""
