"""What `make test` and the slow tests run besides pytest, and what tests share."""
