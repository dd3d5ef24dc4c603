"""Data sources: each writes a raw folder (schema.yaml, interactions/, optional users.parquet and items.parquet)."""
