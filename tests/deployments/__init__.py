"""Tests of the service; those that need a cluster share one."""
