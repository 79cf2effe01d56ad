"""Compare the inference server's speed with other model servers, and with servers that do no work."""
