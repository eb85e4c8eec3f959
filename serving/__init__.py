"""The server: many concurrent streams of recurrent models over gRPC, every stream's state kept here."""
