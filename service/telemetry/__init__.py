"""What the service tells of itself: log lines, metrics of a process and a port for them, traces.

Nothing here knows Postgres, Redis or HTTP routes; those who do fill in the numbers.
"""
