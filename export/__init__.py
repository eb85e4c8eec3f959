"""From a checkpoint to a proved artifact: torch -> model.onnx -> checks -> resident.onnx -> parity -> written."""
