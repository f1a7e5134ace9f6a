"""Documents made from documents, and noising as an objective."""
