"""Tests, laid out as the project is."""
