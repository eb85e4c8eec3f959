"""Programs that run the whole product and measure it."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"  # before ONNX Runtime is imported
