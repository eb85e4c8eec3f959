"""The Open Inference Protocol, as Triton's clients speak it: an adapter over the same streams as our own protocol."""
