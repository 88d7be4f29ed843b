"""A small trained vision transformer and its data, for the first five minutes with fxquant."""
