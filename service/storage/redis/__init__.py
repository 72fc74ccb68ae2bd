"""All that knows Redis."""
