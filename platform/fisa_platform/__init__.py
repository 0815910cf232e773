"""FISA platform: open-vocabulary segmentation as jobs on Ray."""

__version__ = "0.1.0"
