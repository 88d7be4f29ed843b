"""How a quantized graph becomes kernels; one folder per backend."""
