"""Arrival delay of flights from New York: from the airline's database to a model in service."""
