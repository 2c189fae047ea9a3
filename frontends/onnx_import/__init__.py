"""Import of ONNX files: the graph is run by operators of torch, and so captured like any module."""
