// One version: scores, the gate's numbers in words, lineage, schema, files.

import { get, getAll, getIfThere } from "./api.js";
import { byField, calibration, changedItems, familiarity } from "./breakdown.js";
import { facts, fill, h, panel, table } from "./dom.js";
import { count, kind, modelName, period, score, time, version } from "./format.js";
import { replayed, stillKnown } from "./replay.js";
import { scoreTable } from "./scores.js";
import { actions, marks } from "./versions.js";

/** The sections of the page, in order; each makes its panel of the version and what is known beside it, or null. */
const SECTIONS = [summary, scoresOnNext, calibration, familiarity, byField, changedItems, scoresBefore, stillKnown, replayed, gate, lineage, schema, files];

export async function show(context) {
  async function refresh() {
    const query = context.query.get("period");
    const [model, models, periods, processes, samples, breakdown] = await Promise.all([
      get(`admin/models/${encodeURIComponent(context.id)}`, context.signal),
      getAll("admin/models", "models", 200, context.signal),
      getAll("periods", "periods", 200, context.signal),
      get("admin/processes", context.signal),
      getIfThere("admin/samples", context.signal),
      getIfThere(`admin/models/${encodeURIComponent(context.id)}/breakdown${query ? `?period=${encodeURIComponent(query)}` : ""}`, context.signal),
    ]);
    const known = { models, periods, champion: processes.champion, head: models.find((each) => each.head)?.version ?? processes.champion, samples, breakdown, signal: context.signal, refresh };
    fill(context.root, SECTIONS.map((section) => section(model, known)));
  }
  await refresh();
}

function summary(model, { champion, head, refresh }) {
  return panel(
    "Summary",
    facts([
      ["Gate", kind(model.kind)],
      ["State", marks(model).flat().some(Boolean) ? marks(model) : "kept while it is young"],
      ["Learned period", model.period ? period(model.period) : "none: it is the prior"],
      ["Continues", version(model.parent_version)],
      ["Made", [time(model.created_at), " by ", model.created_by]],
      ["Snapshot", model.digest ? h("code", { title: model.digest }, model.digest.slice(0, 16)) : "removed"],
    ]),
    h("div", { class: "row" }, actions(model, champion, head, refresh)),
  );
}

function scoresOnNext(model, { periods }) {
  const found = periods.filter(({ scores }) => Object.values(scores).some((each) => each.version === model.version)).slice(0, 5);
  if (!found.length) return panel("How it predicted", h("p", { class: "muted" }, "It has not been scored yet: the next period that is closed does."));
  return panel(
    "How it predicted",
    h("p", { class: "muted" }, "Its score on the log of periods that nothing had learned yet, beside the others'."),
    found.map((each) => [h("h3", {}, "On period ", period(each.period)), scoreTable(`Scores on period ${each.period}`, each.scores, model)]),
  );
}

function scoresBefore(model) {
  if (!Object.keys(model.scores).length) return null;
  return panel(
    "What it had to beat",
    h("p", { class: "muted" }, "The models before it on the log of the period that it learned, ", period(model.period), "."),
    scoreTable("Scores of the models before it", model.scores),
  );
}

/** A comparison of the trial as a sentence. */
function compared(who, { rows, logloss, other, error }, against) {
  if (logloss === null || other === null) return `${who}: not finite, against ${score(other)} of ${against}.`;
  const better = other - logloss;
  const words = better === 0 ? "the same" : `${score(Math.abs(better))} ${better > 0 ? "better" : "worse"}`;
  return `${who}: LogLoss ${score(logloss)} against ${score(other)} of ${against} on ${count(rows)} rows; ${words}${error === null ? "" : `, give or take ${score(error)}`}.`;
}

function gate(model) {
  const { decision, reason, checks = {}, trial, strange } = model.gate;
  if (!decision) return null;
  const words = {
    generated: "The generated model serves.",
    incremental: "The generated model was refused; the incremental one serves.",
    previous: "Both new models were refused; what was served before stays in service. The period is learned all the same: the next version continues from it.",
  };
  const sentences = trial && [
    trial.served && compared("What was served, on the whole period", trial.served, "a constant"),
    trial.order && compared("The same with the right average, so only its order counts", trial.order, "a constant"),
    ...Object.entries(trial.rehearsals).flatMap(([rung, against]) =>
      Object.entries(against).map(([name, comparison]) =>
        compared(`Rehearsal of ${modelName(rung)}, which learned nine tenths, on the newest tenth`, comparison, name === "served" ? "what was served" : "a constant"),
      ),
    ),
    strange > 0 && `The period is strange, ${strange} in a row: its labels look like noise to all that is known.`,
  ];
  return panel(
    "The gate",
    h("p", {}, h("b", {}, words[decision] ?? decision)),
    h("p", {}, reason),
    sentences && h("ul", {}, sentences.filter(Boolean).map((text) => h("li", {}, text))),
    Object.keys(checks).length > 0 &&
      table({
        compact: true,
        caption: "The new models on the newest interactions, which they have learned",
        columns: [{ label: "new model" }, { label: "AUC", num: true }, { label: "LogLoss", num: true }, { label: "predicted / clicked", num: true }, { label: "passed" }],
        rows: Object.entries(checks).map(([name, { recent, passed }]) => [modelName(name), score(recent.auc), score(recent.logloss), score(recent.calibration, 3), passed === undefined ? "not asked" : passed ? "yes" : "no"]),
      }),
  );
}

function lineage(model, { models }) {
  const byVersion = new Map(models.map((each) => [each.version, each]));
  const before = [];
  for (let at = model.parent_version; at !== null && at !== undefined && before.length < 8; at = byVersion.get(at)?.parent_version) before.unshift(at);
  const after = models.filter((each) => each.parent_version === model.version).map((each) => each.version).reverse();
  const more = before.length && byVersion.get(before[0])?.parent_version !== null && byVersion.has(before[0]);
  return panel(
    "Lineage",
    h("ol", { class: "chain", "aria-label": "From the oldest to this one, and what came of it" }, more && h("li", {}, "…"), before.map((each) => h("li", {}, version(each))), h("li", { "aria-current": "true" }, h("b", {}, `v${model.version}`)), after.map((each) => h("li", {}, version(each)))),
    after.length > 1 && h("p", { class: "muted" }, "More than one version continues it: the sequence was excised."),
  );
}

function schema(model) {
  const found = model.state.serving_schema;
  if (!found) return panel("Fields", h("p", { class: "muted" }, "It reads user, item, history and statistics; no fields."));
  return panel(
    "Fields",
    h("p", { class: "muted" }, `Time zone ${found.timezone}; of the time it reads ${found.time.join(" and ") || "nothing"}.`),
    table({
      caption: "Fields that it reads",
      columns: [{ label: "field" }, { label: "of" }, { label: "kind" }, { label: "settings", wide: true }],
      rows: found.fields.map(({ name, of, kind: kindOf, ...more }) => [h("code", {}, name), of, kindOf, Object.entries(more).map(([setting, value]) => `${setting} ${JSON.stringify(value)}`).join(", ")]),
      empty: "None but the time.",
    }),
  );
}

const digests = (value) => (typeof value === "string" ? [value] : value && typeof value === "object" ? Object.values(value).flatMap(digests) : []);

function files(model) {
  const { parts = {}, snapshot = model.digest ? [model.digest] : [] } = model.state;
  const rows = [["serving snapshot", snapshot], ...Object.entries(parts).map(([name, value]) => [`training state: ${name.replaceAll("_", " ")}`, digests(value).filter((text) => /^[0-9a-f]{64}$/.test(text))])];
  return panel(
    "Files",
    table({
      compact: true,
      caption: "Files by what they hold",
      columns: [{ label: "what" }, { label: "files", num: true }, { label: "newest" }],
      rows: rows.map(([what, found]) => [what, String(found.length), found.length ? h("code", { title: found.at(-1) }, found.at(-1).slice(0, 16)) : "removed"]),
    }),
  );
}
