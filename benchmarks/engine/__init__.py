"""Inference side by side: NextMove's engine, and the same Transformer in other runtimes."""
