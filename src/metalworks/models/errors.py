"""Errors that end a fetch with a sentence for the operator."""


class FetchError(Exception):
    """A model cannot be fetched; the message says why and how to mend it."""
