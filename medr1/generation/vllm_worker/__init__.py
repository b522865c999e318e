"""The directory that a vLLM server imports ``medr1_weights`` from. Its files import nothing of medr1."""
