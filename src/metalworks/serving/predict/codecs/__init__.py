"""Requests and responses as bytes, decoded to arrays and encoded from them."""
