"""Benchmarks: what NextMove costs, beside its peers, on the machine at hand."""
