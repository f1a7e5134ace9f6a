"""Corpora of images with names."""

IMAGE_MARK = "<|image|>"  # where an image stands in a text
