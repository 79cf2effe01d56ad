"""Errors that end an attempt with a sentence for the operator."""


class FetchError(Exception):
    """A model cannot be brought here; the message says why and how to mend it."""


class RegistryError(Exception):
    """The MLflow server does not answer, or not as it should; nothing is known of the model's sake."""


class Stopped(Exception):
    """The program was asked to end."""
