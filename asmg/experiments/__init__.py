"""The paper's experiments on a prepared log: run, resume, report."""
