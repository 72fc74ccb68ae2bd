"""`asmg import`: its command, the log sorted on disk, and the way into the database period by period."""
