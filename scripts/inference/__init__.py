"""An inference service on this machine, for tests and benchmarks: start it, put it under load, measure it."""
