"""Measuring: metrics, data sets, figures of a detector and of its rivals."""
