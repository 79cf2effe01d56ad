"""Compare and reproduce runs that are recorded in MLflow."""
