"""The network, on one device; knows nothing of processes."""
