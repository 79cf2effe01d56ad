"""A site grows old in minutes: everything on it is written down, told apart by whose it is, and compared later."""
