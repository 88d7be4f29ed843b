"""Noise in front of quantizers: where, how much, at what cost, and the rewrite."""
