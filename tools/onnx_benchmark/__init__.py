"""ONNX files of many models, each loaded, cut by half and compared with the masked file."""
