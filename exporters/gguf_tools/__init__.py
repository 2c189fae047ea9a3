"""GGUF files: weights, tokenizer and kinds of models that llama.cpp runs."""
