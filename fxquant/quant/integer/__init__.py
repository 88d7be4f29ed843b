"""Integer arithmetic of transformers: dyadic requantization, products and non-linearities.

Every function here is also an operator of the ``fxquant`` namespace that decomposes into integer
ATen operators, but for ``fxquant::isqrt``, which stays whole: unrolled Newton steps make Inductor
compile for minutes (papers, section 6.5). Operators take the step of their codes as a number; it
turns into integer constants when a graph is built, and no tensor is ever multiplied by it.
"""
