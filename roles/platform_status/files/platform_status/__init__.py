"""What the start page tells: the health of parts that have no health endpoint of their own, and last night's work."""
