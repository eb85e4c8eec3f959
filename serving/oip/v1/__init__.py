"""Code generated from protos/serving/oip/v1 (`make protos`)."""
