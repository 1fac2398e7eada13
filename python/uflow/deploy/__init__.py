"""Detectors that run without torch."""
