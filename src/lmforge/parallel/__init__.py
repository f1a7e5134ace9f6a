"""The same network on many devices, applied from outside."""
