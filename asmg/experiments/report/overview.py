"""Section: what was run."""

import numpy as np

from asmg.experiments.report.blocks import Block, Heading, Paragraph, Table
from asmg.experiments.report.cells import listed, pairs
from asmg.experiments.report.results import Results, label
from asmg.experiments.report.sections import Draw, several_seeds
from asmg.experiments.statistics import mean

__all__ = ["what_was_run"]


def what_was_run(results: Results, _: Draw) -> list[Block]:
    """The log, the protocol and the settings."""
    card, options, test = results.card, results.options, results.test_periods
    periods, pretrain = options["periods"], options["pretrain"]
    settings = {"default": "default (ours)", "paper": "paper (those of its authors)"}
    unused = card["categories"] and not options["categories"]
    facts = {
        "Rows": f"{card['rows']:,}, of these {card['positives']:,} positives",
        "Users, items": f"{card['users']:,} users, {card['items']:,} items",
        "Categories": f"{card['categories']:,}" + (", not used" if unused else ""),
        "Dates": f"{card['first'][:10]} to {card['last'][:10]}",
        "What the log is": "; ".join(card["rule"]),
        "Methods": ", ".join(label(method) for method in results.methods),
        "Seeds": str(len(results.seeds)),
        "Settings": settings.get(options["settings"], str(options["settings"])),
        "Versions": "; ".join(pairs(versions) for versions in results.versions),
        "Machine": pairs(results.machine),
    }
    protocol = (
        f"The log is cut into {periods} periods of equally many rows. Models are pretrained on periods 1 to {pretrain} "
        f"and updated on each of the periods {pretrain + 1} to {periods - 1}; after each update the model is scored on "
        f"the following period, of which it has seen nothing. The test periods are {test[0]} to {test[-1]}: where "
        f"nothing else is said, scores are plain means over these {len(test)}."
    )
    seeds = "One seed: no ±, as there is nothing to take a deviation over."
    if several_seeds(results):
        seeds = "± is the standard deviation over the seeds, of each seed's mean over the periods."
    blocks: list[Block] = [Heading("What was run"), Paragraph(protocol), Paragraph(seeds)]
    without = np.isnan(mean(results.values("auc", results.methods[0]), 0))
    if without.any():
        names = [str(period) for period, missing in zip(test, without, strict=True) if missing]
        blocks.append(
            Paragraph(f"No AUC in period {listed(names)}, where all rows are of one class: not in its means.")
        )
    return [*blocks, Table(("", "This run"), list(facts.items()), numeric=False)]
