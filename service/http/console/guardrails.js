// What watches over the models: rules, what versions still know of earlier periods, alerts.

import { closedAlerts, openAlerts } from "./alerts.js";
import { get } from "./api.js";
import { badge, button, facts, field, fill, h, link, panel, table } from "./dom.js";
import { period, score, time, version } from "./format.js";
import { forgettingMatrix } from "./matrix.js";

const EVERY_SECONDS = 10;

export async function show(context) {
  const rules = h("div", {});
  const shadows = h("div", {});
  const matrix = h("div", {});
  const open = h("div", {});
  const closed = h("div", {});
  const more = h("div", { class: "row" });
  const measure = h("select", {}, h("option", { value: "auc" }, "AUC"), h("option", { value: "logloss" }, "LogLoss"));
  measure.addEventListener("change", () => fill(matrix, forgettingMatrix(samples, measure.value)));
  fill(
    context.root,
    panel("Open alerts", open),
    panel("Rules", h("p", { class: "muted" }, "Each looks at a new version and at the period that it was made from. A bound follows from how much the numbers differ anyway, unless a setting has it."), rules),
    panel("Shadows", h("p", { class: "muted" }, "Update methods that run beside the served one, and are scored and never served."), shadows),
    panel(
      "What versions still know",
      h("p", { class: "muted" }, "Every version is scored on interactions that were kept of earlier periods. In a frame: the score of the version that had just learned the period. Elsewhere: by how much a later version differs from that. Orange is worse, blue is better; the darker, the more (from 0.01, 0.03, 0.1 on)."),
      h("div", { class: "row" }, field("Measure", measure)),
      matrix,
    ),
    panel("Closed alerts", closed, more),
  );
  let samples;
  let before;
  let past = [];

  async function older(cursor) {
    const page = await get(`admin/alerts?open=false&limit=20${cursor === null ? "" : `&before=${cursor}`}`, context.signal);
    past = [...past, ...page.alerts];
    fill(closed, closedAlerts(past));
    fill(more, page.next !== null && button("Older", () => older(page.next).catch((problem) => context.fail(problem, context.trouble)), { "data-focus": "older" }));
  }

  async function refresh() {
    const [state, known, found] = await Promise.all([get("admin/guardrails", context.signal), get("admin/samples", context.signal), get("admin/alerts?open=true&limit=200", context.signal)]);
    fill(context.trouble);
    const text = JSON.stringify([state, known, found]);
    if (text === before) return;
    before = text;
    samples = known;
    fill(open, openAlerts(found.alerts, refresh));
    fill(rules, rulesOf(state));
    fill(shadows, shadowsOf(state.shadows));
    fill(matrix, forgettingMatrix(samples, measure.value));
    past = [];
    await older(null);
  }
  await context.every(EVERY_SECONDS, refresh);
}

/** A number of a rule in its unit; nothing where it is not known. */
function amount(number, unit) {
  if (number === null) return "";
  return unit === "share" ? `${(100 * number).toFixed(1)} %` : unit === "index" ? number.toFixed(2) : score(number);
}

function boundsOf({ low, high, unit }) {
  if (low !== null && high !== null) return `${amount(low, unit)} to ${amount(high, unit)}`;
  if (low !== null) return `at least ${amount(low, unit)}`;
  return high === null ? "" : `at most ${amount(high, unit)}`;
}

function stateOf({ now, low, high, open_alert: alert }) {
  if (alert !== null) return badge("alert is open", "bad");
  if (now === null || (low === null && high === null)) return badge("knows too little");
  return (low !== null && now < low) || (high !== null && now > high) ? badge("outside", "warn") : badge("all is well", "ok");
}

function rulesOf(state) {
  if (!state.sample_events) return h("p", { class: "banner warn" }, "All rules are off: ASMG_SAMPLE_EVENTS is 0.");
  return [
    table({
      caption: "Rules of the guardrails",
      columns: [{ label: "rule" }, { label: "state" }, { label: "now", num: true }, { label: "usual", num: true }, { label: "bounds" }, { label: "what it watches", wide: true }],
      rows: state.rules.map((rule) => [
        rule.rule.replaceAll("_", " "),
        stateOf(rule),
        amount(rule.now, rule.unit),
        amount(rule.usual, rule.unit),
        boundsOf(rule),
        [rule.watches, rule.setting && [" (", h("code", {}, rule.setting), ")"]],
      ]),
    }),
    facts([
      ["Looked at", state.period === null ? "nothing yet" : ["period ", period(state.period), ", ", version(state.version)]],
      ["Kept", `${state.sample_events.toLocaleString("en")} interactions of each of ${state.sample_periods} periods`],
      ["Worse than a constant", state.losing_in_a_row ? `${state.losing_in_a_row} periods in a row` : "not on the newest period"],
      ["Rolls back by itself", state.rollback_after ? `after ${state.rollback_after} such periods in a row` : "never: ASMG_ROLLBACK_AFTER is 0"],
      ["What guardrails have done", link("#/audit?actor=guardrail", "in the audit")],
    ]),
  ];
}

function shadowsOf(shadows) {
  if (!shadows.length) return h("p", { class: "muted" }, "None: the worker has no ASMG_SHADOW, or has published no version with it.");
  const far = (behind) => (behind === 0 ? badge("has learned all", "ok") : behind === null ? badge("starts again", "warn") : badge(`${behind} behind`));
  return table({
    caption: "Shadows",
    columns: [{ label: "method" }, { label: "state" }, { label: "learned last" }, { label: "begun the next", num: true }, { label: "last started again", wide: true }],
    rows: shadows.map((shadow) => [
      shadow.method,
      far(shadow.behind),
      period(shadow.period),
      String(shadow.attempts),
      shadow.restarted_at === null ? "" : [time(shadow.restarted_at), ": ", shadow.restarted_for],
    ]),
  });
}
