// How a version scored by parts of a period: along its predictions, on new users and items, by field, and item by item.

import { h, link, panel, table } from "./dom.js";
import { count, modelName, percent, period, score, version } from "./format.js";
import { calibrationCurve } from "./calibration.js";

const WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const LONGEST = 40;

/** What is said of the version: of the model that it serves, or would have served. */
const chosen = (model, { breakdown }) => breakdown?.models.find((each) => each.model === model.kind) ?? breakdown?.models[0];

/** What every section is about, with ways to the other periods. */
function about(model, { breakdown }, { model: name }) {
  const others = breakdown.periods.filter((each) => each !== breakdown.period).slice(-8);
  const refused = model.kind === "previous" && ["generated", "incremental"].includes(name);
  return h(
    "p",
    { class: "muted" },
    `On ${count(breakdown.rows)} interactions of period `,
    period(breakdown.period),
    `, which nothing had learned yet; scored as ${modelName(name)}${refused ? ", which the gate refused" : ""}.`,
    others.length > 0 && [" See also period ", others.map((each, n) => [n ? ", " : "", link(`#/versions/${model.version}?period=${each}`, String(each))]), "."],
  );
}

const SCORES = [{ label: "events", num: true }, { label: "clicked", num: true }, { label: "AUC", num: true }, { label: "LogLoss", num: true }, { label: "predicted / clicked", num: true }];
const scoresOf = ({ rows, clicks, auc, logloss, calibration }) => [count(rows), rows ? percent(clicks / rows) : "–", score(auc), score(logloss), score(calibration, 3)];

/** A text that is shown in part where it is long. */
const short = (text) => (text.length > LONGEST ? h("span", { title: text }, `${text.slice(0, LONGEST)}…`) : text);

export function calibration(model, known) {
  const found = chosen(model, known);
  return found?.curve.length ? panel("Calibration", about(model, known, found), calibrationCurve(found.curve)) : null;
}

export function familiarity(model, known) {
  const found = chosen(model, known);
  if (!found) return null;
  const parts = { "new users": found.users.new, "known users": found.users.known, "new items": found.items.new, "known items": found.items.known };
  return panel(
    "New and known",
    h("p", { class: "muted" }, "New are users and items of which no model had learned an interaction."),
    table({
      compact: true,
      caption: "Scores on new and on known users and items",
      columns: [{ label: "with" }, ...SCORES],
      rows: Object.entries(parts).map(([name, part]) => [name, ...scoresOf(part)]),
    }),
  );
}

function valueOf(name, { value, other }) {
  if (other) return "all others";
  if (value === null) return "no longer known";
  if (value === "") return "missing";
  return name === "weekday" ? (WEEKDAYS[value] ?? value) : short(value);
}

export function byField(model, known) {
  const fields = chosen(model, known)?.fields ?? [];
  if (!fields.length) return null;
  const tables = fields.map(({ name, values }, n) => {
    const caption = `Scores by ${name}`;
    return h(
      "details",
      { class: "numbers", open: n < 2, "data-focus": caption },
      h("summary", { "data-focus": `summary ${caption}` }, h("code", {}, name)),
      table({ compact: true, caption, columns: [{ label: name }, ...SCORES], rows: values.map((each) => [valueOf(name, each), ...scoresOf(each)]) }),
    );
  });
  return panel("By field", h("p", { class: "muted" }, "The most frequent values of each field; of several values at a time, an interaction counts for each."), h("div", { class: "charts" }, tables));
}

export function changedItems(model, known) {
  const { changed = [] } = chosen(model, known) ?? {};
  if (!changed.length) return null;
  return panel(
    "Most changed items",
    h("p", { class: "muted" }, "Its mean prediction for an item, and that of ", version(known.breakdown.against), " before it for the same interactions. Of items with at least three, those that moved most."),
    table({
      compact: true,
      caption: "Items of which it says the most different things than the version before it",
      columns: [{ label: "item" }, { label: "events", num: true }, { label: "clicked", num: true }, { label: "before", num: true }, { label: "now", num: true }, { label: "change", num: true }],
      rows: changed.map(({ item_id: item, rows, clicks, before, after }) => [item === null ? "no longer known" : short(item), count(rows), percent(clicks / rows), percent(before), percent(after), `${after > before ? "▲" : "▼"} × ${(after / before).toFixed(2)}`]),
    }),
  );
}
