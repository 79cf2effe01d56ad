"""Which versions of a model serve, and the processes that run them.

The supervisor and the launcher import the standard library alone.
"""
