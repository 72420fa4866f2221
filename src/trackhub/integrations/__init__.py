"""Frameworks that trackhub fits into, one a file, on the public API only."""
