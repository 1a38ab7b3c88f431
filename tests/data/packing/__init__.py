"""Packed rows: their order, their layouts, and training on them."""
