"""The same model behind other servers, one file each, run as `python -m benchmarks.serving.peers.<file>`."""
