"""The processors that come with trackhub, one a file; each is found by its name, as those of plugins are."""
