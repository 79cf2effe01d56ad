"""How fast the inference server is beside what else serves a model, and beside servers that answer nothing."""
