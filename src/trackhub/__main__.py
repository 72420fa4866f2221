"""`python -m trackhub` is the command line, for where the console script is not on the path."""

from trackhub.cli import main

main()
