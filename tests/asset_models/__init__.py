"""Real models and images for tests and benchmarks; the files live outside the checkout."""
