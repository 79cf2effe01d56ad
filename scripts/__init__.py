"""What the Makefile calls: `python -m scripts.<name>`, run from the repository's root."""
