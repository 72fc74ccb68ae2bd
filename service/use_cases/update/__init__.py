"""The update of one period, stage by stage."""
