"""Metalworks: what its roles install on hosts."""
