"""Renders of the template with known parameters: the truth that tracking is measured against."""
