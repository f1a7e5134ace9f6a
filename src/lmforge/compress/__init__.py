"""Model → smaller model; each method replaces modules and reports."""
