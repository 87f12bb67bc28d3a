"""Trains a tiny model with untied embeddings to add up, in the words of our agents."""
