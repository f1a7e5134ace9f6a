"""Loops that the network runs on one kind of processor, each with its plain form beside it in the tests."""
