"""Network → text and scores of text: one decoding loop for all that generates, one function for all that scores."""
