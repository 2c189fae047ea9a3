"""GGUF files: weights, tokenizer and the model architectures that llama.cpp supports."""
