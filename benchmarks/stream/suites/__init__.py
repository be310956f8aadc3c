"""The suites: each asks one question, and returns its section of the figures."""
