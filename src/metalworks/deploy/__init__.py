"""`metalworks deploy`: check a project's flows in the project's environment, then deploy and schedule them."""
