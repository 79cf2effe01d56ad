"""The start page in a terminal: `metalworks status` for developers, `make status` for operators."""
