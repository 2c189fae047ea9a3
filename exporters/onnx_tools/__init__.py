"""ONNX files: written, read, quantized and run."""
