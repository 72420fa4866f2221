"""trackhub's version, the one `pyproject.toml` reads; apart so that reading it imports nothing."""

VERSION = "0.1.0"
