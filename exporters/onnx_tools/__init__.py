"""ONNX files: export, quantization and execution."""
