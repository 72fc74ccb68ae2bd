"""What the service does, one file a use case. They own the transactions, and know neither HTTP nor SQL."""
