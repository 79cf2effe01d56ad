"""The prediction log's way from an inference host to the object store, as Parquet."""
