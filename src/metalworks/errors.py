"""Errors whose message is for the user: what is wrong and what to do."""


class CommandError(Exception):
    """A `metalworks` command failed; the message says why and what to do."""


class FlowRunError(Exception):
    """A flow run cannot start; the message says why and what to do."""


class FetchError(Exception):
    """A model cannot be fetched or installed; the message says why and what to do."""


class RegistryError(Exception):
    """The MLflow server did not respond, or responded with an error."""


class Stopped(Exception):
    """The program was asked to stop."""
