"""The float and quantized graph: normal form, patterns, rules, roles, sites, layer graph."""
