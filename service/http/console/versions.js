// All versions: how the models predicted, what the gate decided, and which one serves.

import { pin, serve } from "./actions.js";
import { get, getAll } from "./api.js";
import { badge, button, field, fill, h, panel, table } from "./dom.js";
import { kind, period, score, time, version } from "./format.js";
import { scoreCharts } from "./scores.js";

export async function show(context) {
  const charts = h("div", { class: "charts" });
  const rows = h("div", {});
  const most = h("select", {}, [20, 50, 100, 200].map((number) => h("option", { value: number, selected: number === 50 }, String(number))));
  most.addEventListener("change", () => refresh().catch((problem) => context.fail(problem)));
  fill(
    context.root,
    panel("Scores by period", h("p", { class: "muted" }, "Each model's score on the log of a period, before anything had learned it. ", h("b", {}, "Frozen"), " is the first model, never updated; ", h("b", {}, "previous"), " is the version served before; a ", h("b", {}, "shadow"), " is a method that runs beside the served one."), charts),
    panel("Versions", h("div", { class: "row" }, field("Newest", most)), rows),
  );

  async function refresh() {
    const number = Number(most.value);
    const [periods, models, processes] = await Promise.all([
      getAll("periods", "periods", number, context.signal),
      getAll("admin/models", "models", number, context.signal),
      get("admin/processes", context.signal),
    ]);
    fill(charts, scoreCharts(periods));
    fill(rows, versionTable(models, periods, processes.champion, refresh));
  }
  await refresh();
}

/** How what a version serves predicted a later period. */
function later({ version: number, kind: served }, periods) {
  const found = periods.find(({ scores }) => scores[served]?.version === number);
  return found ? [score(found.scores[served].logloss), h("span", { class: "muted" }, ` on ${found.period}`)] : "–";
}

function versionTable(models, periods, champion, refresh) {
  const head = models.find((model) => model.head)?.version ?? champion;
  return table({
    caption: "Versions, newest first",
    columns: [
      { label: "version" },
      { label: "period", num: true },
      { label: "gate" },
      { label: "reason", wide: true },
      { label: "LogLoss", num: true },
      { label: "parent" },
      { label: "state", wide: true },
      { label: "made" },
      { label: "actions", hidden: true },
    ],
    rows: models.map((model) => ({
      class: model.champion ? "mine" : null,
      cells: [
        version(model.version),
        period(model.period),
        kind(model.kind),
        h("span", { class: "clamp", title: model.gate.reason }, model.gate.reason ?? "–"),
        later(model, periods),
        version(model.parent_version),
        marks(model),
        time(model.created_at),
        h("div", { class: "row" }, actions(model, champion, head, refresh)),
      ],
    })),
  });
}

/** What a version is, beside its gate's decision. */
export const marks = (model) => [
  model.champion && badge("in service", "ok"),
  model.head && badge("head", "busy"),
  model.pinned && badge("pinned"),
  model.kept.filter((why) => !["champion", "head", "pinned"].includes(why)).map((why) => badge(why)),
  model.digest === null && badge("files gone", "warn"),
];

export function actions(model, champion, head, refresh) {
  const done = async (work) => (await work) && refresh();
  return [
    !model.champion && model.digest !== null && button(`${model.version < champion ? "Roll back" : "Roll forward"}…`, () => done(serve(champion, model.version, head)), { "data-focus": `serve ${model.version}`, "aria-label": `Roll ${model.version < champion ? "back" : "forward"} to version ${model.version}` }),
    (model.pinned || model.digest !== null) && button(model.pinned ? "Unpin…" : "Pin…", () => done(pin(model.version, !model.pinned)), { "data-focus": `pin ${model.version}`, "aria-label": `${model.pinned ? "Unpin" : "Pin"} version ${model.version}` }),
  ];
}
