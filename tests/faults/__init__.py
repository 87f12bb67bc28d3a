"""Tests on a cluster of several nodes."""
