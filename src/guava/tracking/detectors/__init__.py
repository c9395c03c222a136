"""Detectors, chosen by name."""
