"""Break parts of the lab one after the other under a steady load, and check that no acknowledged write is lost."""
