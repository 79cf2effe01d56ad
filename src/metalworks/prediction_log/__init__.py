"""Send finished segments of the prediction log from an inference host to the object store, as Parquet files."""
