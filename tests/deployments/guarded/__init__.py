"""An application that asks for keys, on a running Serve."""
