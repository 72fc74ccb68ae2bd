"""What Redis is used for: users' last interactions and features, notices between processes, shared rate limits.

Redis never holds the only copy of anything. Every call works while Redis is away: users' pasts are read from Postgres,
notices are dropped (their receivers poll Postgres too), and each process applies rate limits by itself.
"""
