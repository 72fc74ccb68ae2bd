"""The update of one period: `pipeline.update_period` runs a module of this package for each stage."""
