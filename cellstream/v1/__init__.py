"""Code generated from protos/cellstream/v1 (`make protos`)."""
