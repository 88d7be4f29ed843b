"""A whole quantized graph as one program of kernel calls."""
