"""The processes of one host: started, watched and stopped."""
