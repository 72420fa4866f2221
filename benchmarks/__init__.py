"""Measurements of trackhub beside its peers, all in one run on one machine.

A package so that `python -m benchmarks` works from a checkout; nothing here is installed with trackhub.
"""
