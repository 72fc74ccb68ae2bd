// The scores of the models on periods, as charts and as tables.

import { lineChart } from "./charts.js";
import { h, table } from "./dom.js";
import { modelName, modelsOf, score, version } from "./format.js";

/** AUC and LogLoss of all models over periods, which come newest first. */
export function scoreCharts(periods, measures = ["auc", "logloss"]) {
  const scored = periods.filter(({ scores }) => Object.keys(scores).length).reverse();
  const models = modelsOf(scored.map(({ scores }) => scores));
  const titles = { auc: ["AUC", "higher is better"], logloss: ["LogLoss", "lower is better"] };
  return measures.map((measure) =>
    lineChart({
      title: titles[measure][0],
      hint: titles[measure][1],
      x: scored.map(({ period }) => period),
      series: models.map((name) => ({
        name: modelName(name),
        values: scored.map(({ scores }) => scores[name]?.[measure] ?? null),
      })),
    }),
  );
}

/** The scores of one period; the row of what the version `own` serves is marked. */
export function scoreTable(caption, scores, own = null) {
  return table({
    caption,
    compact: true,
    columns: [
      { label: "model" },
      { label: "version" },
      { label: "AUC", num: true },
      { label: "LogLoss", num: true },
      { label: "predicted / clicked", num: true },
    ],
    rows: modelsOf([scores]).map((name) => {
      const of = scores[name];
      const mine = own !== null && of.version === own.version && (name === own.kind || !["generated", "incremental"].includes(name));
      return {
        class: mine ? "mine" : null,
        cells: [mine ? h("b", {}, modelName(name)) : modelName(name), version(of.version), score(of.auc), score(of.logloss), score(of.calibration, 3)],
      };
    }),
    empty: "No model was scored.",
  });
}
