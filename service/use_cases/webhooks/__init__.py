"""Webhooks: endpoints that are told of events. `announce` writes into the outbox, `deliver` sends what is there."""
