"""Smaller forms of a trained run: 8-bit whole numbers (int8.py), fewer channels and units (channels.py).

What a form is worth is measured by measure.py. Models that learn to be small are train's: pruning, distillation."""
