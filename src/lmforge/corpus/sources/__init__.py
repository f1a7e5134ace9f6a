"""Where documents come from: each kind of source → documents."""
