"""`asmg bench soak`: hundreds of small periods, and whether disk, memory and close time stay where they are."""
