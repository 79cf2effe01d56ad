"""What keeps a flow run from starting."""


class FlowRunError(Exception):
    """The flow run cannot start; the message says why and how to mend it."""
