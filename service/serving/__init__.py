"""What a prediction needs and nothing more: immutable snapshots and the swap between them. Knows no storage."""
