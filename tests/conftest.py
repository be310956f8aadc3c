"""Hypothesis: few examples and no time limit for one, since the machines that run these tests are small and shared."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "small", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("small")
