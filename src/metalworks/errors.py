"""Errors that end what was asked for with a sentence for the person who asked."""


class CommandError(Exception):
    """A `metalworks` command cannot do what was asked; the message says why and what to do."""


class FlowRunError(Exception):
    """A flow run cannot start; the message says why and how to fix it."""


class FetchError(Exception):
    """A model cannot be brought to this host; the message says why and how to fix it."""


class RegistryError(Exception):
    """The MLflow server does not answer, or answers with an error."""


class Stopped(Exception):
    """The program was asked to end."""
