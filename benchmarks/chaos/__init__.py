"""`asmg chaos`: a whole service under load while its processes and servers are killed and paused at random."""
