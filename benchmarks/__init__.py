"""What the service and the library cost and keep, measured. Reports are JSON (`--report FILE`).

Commands of the program `asmg` (`cli.py`):

| command | question | module | figures in |
| --- | --- | --- | --- |
| `asmg bench update` | what does one update cost, by method, and beside a plain whole-table one | `update.run` | performance.md |
| `asmg bench scaling` | does the cost grow with tables that the traffic does not touch | `update.scaling` | performance.md |
| `asmg bench serve` | requests a second, latency, CPU and memory, beside other servers and during swaps | `serving.run` | performance.md |
| `asmg bench ingest` | what does storing events cost beside a bare COPY | `ingest` | performance.md |
| `asmg bench soak` | are disk, memory and close time flat over hundreds of periods | `soak.run` | reliability.md |
| `asmg chaos` | are all promises kept while processes are killed and paused | `chaos.run` | reliability.md |

Run with `python -m benchmarks.…`:

| module | question | figures in |
| --- | --- | --- |
| `serving.stages` | where does the time of a prediction go inside the application | performance.md |
| `serving.forward` | what do statistics cost in the forward pass | performance.md |
| `serving.starting` | how long does a start with a large snapshot take, and what do processes share | performance.md |
| `gate` | what does the gate cost, and how often does it refuse a period of a public log | performance.md |
| `ablation` | what does each statistic, part and setting contribute | results.md |
| `parity` | do our methods score like the authors' code on the same rows | results.md |
| `streams` | what does the generated model gain where the drift is known | results.md |
| `preparing` | what do preparing and importing large logs take | experiments.md |

Shared modules, lowest first: `options` (checks), `measuring` (timing), `machine` (facts, CPU time, memory), `printing`,
`reports` (JSON, promises); `http_load` (the load generator); `servers` and `services` (processes, and a service of
one's own); `learning` (logs as table rows, update methods).
"""
