"""Metalworks: the programs that its roles install on hosts."""
