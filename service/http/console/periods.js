// All periods: close the open one, and retry or skip one in quarantine.

import { close, retry, skip } from "./actions.js";
import { get } from "./api.js";
import { button, fill, h, panel, table } from "./dom.js";
import { count, duration, period, score, seconds, status, time, version } from "./format.js";
import { follow } from "./stages.js";

export async function show(context) {
  const live = h("div", {});
  const top = h("div", { class: "row" });
  const rows = h("div", {});
  const more = h("div", { class: "row" });
  fill(context.root, top, live, panel("All periods", rows, more));
  let older = [];
  let before;
  let watched = null;

  async function refresh() {
    const page = await get("periods?limit=50", context.signal);
    fill(context.trouble);
    const text = JSON.stringify([page, older.length]);
    if (text === before) return;
    before = text;
    const open = page.periods.find((each) => each.status === "open");
    const closeNow = async () => {
      if (await close(open.period, open.events)) await refresh();
    };
    fill(top, open && h("p", {}, "Period ", h("b", {}, String(open.period)), ` is open, with ${count(open.events)} events.`), open && button(`Close period ${open.period} now…`, closeNow, { class: "primary", "data-focus": "close" }));
    const all = [...page.periods, ...older];
    fill(rows, periodTable(all, refresh));
    const next = older.length ? older.at(-1).period : page.next;
    fill(more, next !== null && next > 1 && button("Older", () => load(next), { "data-focus": "older" }));
    const running = all.filter((each) => ["sealed", "updating"].includes(each.status)).at(-1);
    if (running && running.period !== watched) {
      watched = running.period;
      watch(running.period, all.find((each) => each.stages.length && each.status === "updated")?.stages);
    }
  }

  async function load(next) {
    const page = await get(`periods?limit=50&before=${next}`, context.signal);
    older = [...older, ...page.periods];
    await refresh();
  }

  /** Show the update that is under way until it has ended. */
  async function watch(number, usual) {
    const place = h("div", {});
    fill(live, panel(`Update of period ${number}`, place));
    await follow(context, number, place, usual).catch((problem) => context.fail(problem, place));
    if (context.signal.aborted) return;
    watched = null;
    await refresh().catch((problem) => context.fail(problem, context.trouble));
  }
  await context.every(3, refresh);
}

function periodTable(periods, refresh) {
  return table({
    caption: "Periods, newest first",
    columns: [{ label: "period" }, { label: "status" }, { label: "events", num: true }, { label: "version" }, { label: "AUC", num: true }, { label: "LogLoss", num: true }, { label: "closed" }, { label: "update took", num: true }, { label: "trouble", wide: true }, { label: "actions", hidden: true }],
    rows: periods.map((each) => ({
      class: each.status === "quarantined" ? "trouble" : null,
      cells: [
        period(each.period),
        status(each.status),
        count(each.events),
        version(each.version),
        score(each.scores.generated?.auc),
        score(each.scores.generated?.logloss),
        time(each.sealed_at),
        each.finished_at && each.status === "updated" ? duration(seconds(each.sealed_at, each.finished_at)) : "–",
        each.error ? h("span", { class: "clamp", title: each.error }, each.error) : "",
        periodActions(each, refresh),
      ],
    })),
  });
}

/** What can be done about a period in quarantine, or one that waits. */
export function periodActions(each, refresh) {
  const done = async (work) => (await work) && refresh();
  const can = { quarantined: [true, true], sealed: [false, true], updating: [false, true] }[each.status] ?? [false, false];
  return h(
    "div",
    { class: "row" },
    can[0] && button("Retry…", () => done(retry(each.period)), { "data-focus": `retry ${each.period}`, "aria-label": `Retry period ${each.period}` }),
    can[1] && button("Skip…", () => done(skip(each.period)), { "data-focus": `skip ${each.period}`, "aria-label": `Skip period ${each.period}` }),
  );
}
