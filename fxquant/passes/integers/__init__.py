"""A graph of quantize-dequantize pairs turned into one of integers, and the proof of it."""
