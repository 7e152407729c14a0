"""Bytes in, tensors out: sample tables, archives of images, decoding."""
