"""The server: many concurrent streams of recurrent models over gRPC, every stream's state kept here."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"  # before ONNX Runtime is imported
