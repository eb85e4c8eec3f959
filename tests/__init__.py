"""The tests, mirroring the packages."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"  # before ONNX Runtime is imported
