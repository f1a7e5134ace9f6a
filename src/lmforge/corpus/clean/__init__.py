"""What a text must be to be worth training on."""
