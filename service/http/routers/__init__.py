"""HTTP in, use case, HTTP out: one file a resource, no logic of their own."""
