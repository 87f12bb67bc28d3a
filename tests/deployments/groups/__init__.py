"""Groups with real engines over a tiny model, without Ray."""
