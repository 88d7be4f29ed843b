"""Parts of the pass that gives non-linearities integer kernels."""
