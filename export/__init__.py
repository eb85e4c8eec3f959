"""From a checkpoint to a proved artifact: torch -> model.onnx -> checks -> resident.onnx -> parity -> written."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"  # before ONNX Runtime is imported
