"""Errors that a person has to fix."""


class FlightsError(Exception):
    """A step failed; the message says why and what to do."""
