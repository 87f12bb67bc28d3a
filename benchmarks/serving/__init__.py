"""What serving costs, measured on Ray: the part of the benchmarks that may look at deployments."""
