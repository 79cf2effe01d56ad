"""From a request's rows to the model's outputs."""
