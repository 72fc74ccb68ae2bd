"""The paper's experiments on a prepared log: run, resume, report.

`run` starts processes (`worker`) that run jobs (`chain`, `jobs`) on the log's periods (`periods`), and writes their
results (`tables`, `summary`) to a folder (`folder`). `report` makes tables and figures of them. Used by `asmg
experiment`.
"""
