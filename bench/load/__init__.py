"""The load generator: gRPC calls as raw HTTP/2 frames, made and checked for a few microseconds each."""
