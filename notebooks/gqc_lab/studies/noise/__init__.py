"""Noise-scale estimators and wrappers on streams of gradients whose truth is known."""
