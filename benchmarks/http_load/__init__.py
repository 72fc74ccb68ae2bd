"""One HTTP load generator for all benchmarks that ask a server."""
