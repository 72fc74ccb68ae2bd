"""What the service and the library cost, and whether the service keeps its promises, measured.

Commands of the program `asmg` (`cli.py`), the question of each, and where its figures are:

* `asmg bench update` (`update/run.py`): what does one update cost, by method, and beside a plain implementation that
  works through whole tables? docs/performance.md
* `asmg bench scaling` (`update/scaling.py`): does that cost grow with tables that the traffic does not touch?
  docs/performance.md
* `asmg bench serve` (`serving/run.py`): requests a second, latencies, CPU time and memory of the service, beside other
  servers and while versions are swapped? docs/performance.md
* `asmg bench ingest` (`ingest.py`): what does storing events cost beside a bare COPY? docs/performance.md
* `asmg bench soak` (`soak/run.py`): do disk, memory and close time stay flat over hundreds of periods?
  docs/reliability.md
* `asmg chaos` (`chaos/run.py`): does every promise hold while processes are killed and paused? docs/reliability.md

Modules that are run with `python -m benchmarks.…`:

* `serving.stages`: where does the time of a prediction go inside the application? docs/performance.md
* `serving.forward`: what do statistics cost in the forward pass? docs/performance.md
* `serving.starting`: how long does a start with a large snapshot take, and what do processes share? docs/performance.md
* `gate`: what does the gate cost, and how many periods of a public log does it refuse? docs/performance.md
* `ablation`: what does each statistic, part and setting contribute? docs/results.md
* `parity`: do our methods score like the authors' code on the same rows? docs/results.md
* `streams`: what does the generated model gain where the drift is known? docs/results.md
* `preparing`: what do preparing and importing large logs take? docs/experiments.md

Shared, lowest layer first: `options` (checks of options), `measuring` (timing), `machine` (facts, CPU time, memory),
`printing`, `reports` (JSON, promises); `http_load` (the load generator); `servers` (processes); `services` (a service
of one's own) and `learning` (logs as table rows, update methods).
"""
