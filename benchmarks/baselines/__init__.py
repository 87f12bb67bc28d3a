"""What the engine is compared with: the plain algorithms and transformers' own generators.

Imports nothing from the product, so that it can be its oracle.
"""
