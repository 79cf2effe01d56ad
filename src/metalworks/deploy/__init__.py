"""`metalworks deploy`: a project's flows, checked in an environment of their own, onto the platform's schedule."""
