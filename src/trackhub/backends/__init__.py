"""The built-in backends, one vendor a file. They come through the same door as any plugin: see `plugins.py`."""
