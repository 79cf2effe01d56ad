"""What a person has to put right."""


class FlightsError(Exception):
    """It cannot be done; the message says why and what to do."""
