// What a version says of the interactions that were kept of each period: of earlier ones, and had it stayed in service.

import { get } from "./api.js";
import { fill, h, panel, table } from "./dom.js";
import { count, period, score, version } from "./format.js";

const AGAIN_MS = 1000;

/** How a version scores the periods up to its own, beside the versions that had just learned them. */
export function stillKnown(model, { models, samples }) {
  const cells = (samples?.cells ?? []).filter((cell) => cell.version === model.version && cell.period <= model.period && cell.auc !== null);
  if (!cells.length) return null;
  const fresh = new Map(samples.cells.filter((cell) => cell.auc !== null).map((cell) => [`${cell.version}/${cell.period}`, cell.auc]));
  const learned = new Map();
  for (const each of models) learned.set(each.period, Math.max(each.version, learned.get(each.period) ?? 0));
  return panel(
    "What it still knows",
    h("p", { class: "muted" }, "Its AUC on interactions that were kept of earlier periods, beside that of the version that had just learned them."),
    table({
      compact: true,
      caption: "AUC on earlier periods",
      columns: [{ label: "period" }, { label: "events", num: true }, { label: "AUC", num: true }, { label: "when just learned", num: true }, { label: "LogLoss", num: true }],
      rows: cells.map((cell) => [period(cell.period), count(cell.events), score(cell.auc), score(fresh.get(`${learned.get(cell.period)}/${cell.period}`) ?? null), score(cell.logloss)]),
    }),
  );
}

const interval = ({ difference, low, high }) => (difference === null ? "" : `${score(difference)} (${score(low)} to ${score(high)})`);

function answer(found) {
  if (!found.periods.length) return h("p", { class: "muted" }, "Nothing was kept of a period that came after it.");
  const { total } = found;
  const verdict =
    total.difference === null ? "" : total.high < 0 ? "It would have been better than what was served." : total.low > 0 ? "It would have been worse than what was served." : "The difference is within what chance makes.";
  return [
    h("p", {}, h("b", {}, verdict), ` LogLoss ${score(total.logloss)} against ${score(total.served_logloss)} on ${count(total.events)} interactions.`),
    table({
      compact: true,
      caption: "Had this version stayed in service",
      columns: [{ label: "period" }, { label: "served" }, { label: "events", num: true }, { label: "its LogLoss", num: true }, { label: "served", num: true }, { label: "difference, 95 %", num: true }],
      rows: [...found.periods, { period: null, served_version: null, ...total }].map((each) => [
        each.period === null ? "all" : period(each.period),
        each.served_version === null ? "" : version(each.served_version),
        count(each.events),
        each.failure ? each.failure : score(each.logloss),
        score(each.served_logloss),
        interval(each),
      ]),
    }),
  ];
}

/** A replay of the periods after the version; it is computed when somebody asks for it. */
export function replayed(model, { signal }) {
  if (model.version === 0) return null;
  const place = h("div", { "aria-live": "polite" });
  async function ask() {
    fill(place, h("p", { class: "muted" }, "The worker scores what was kept …"));
    try {
      let found = await get(`admin/replay?version=${model.version}`, signal);
      while (found.status === "computing" && !signal?.aborted) {
        await new Promise((again) => setTimeout(again, AGAIN_MS));
        found = await get(`admin/replay?version=${model.version}`, signal);
      }
      fill(place, answer(found));
    } catch (problem) {
      if (problem.name !== "AbortError") fill(place, h("p", { class: "banner bad" }, problem.message));
    }
  }
  return panel(
    "Had it stayed in service",
    h("p", { class: "muted" }, "What it says of the interactions that were kept of later periods, beside what was served then. Below 0 it would have been better."),
    h("button", { type: "button", onclick: ask, "data-focus": "replay" }, "Replay"),
    place,
  );
}
