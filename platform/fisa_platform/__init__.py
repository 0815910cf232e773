"""FISA platform: open-vocabulary segmentation as jobs on Ray."""

__version__ = "0.2.0"
