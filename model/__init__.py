"""The backend: a causal Transformer over user events. It knows nothing of Kafka, topics or tables."""
