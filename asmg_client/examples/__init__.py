"""Programs that show how the client is used; each takes the address of a service as its argument."""
