"""A package, so that `tests/deployments` is not taken for `deployments`."""
