// A version that answers a share of the users first: how it fares, and what became of those before it.

import { decide } from "./actions.js";
import { get } from "./api.js";
import { badge, button, facts, fill, h, link, panel, s, table } from "./dom.js";
import { count, duration, pairs, seconds, time, version } from "./format.js";

const EVERY_SECONDS = 5;
const STATES = { running: "busy", promoted: "ok", reverted: "bad", replaced: "" };
const MEASURES = {
  clicks: { title: "Clicks", worse: -1, text: "share of the shown items that were clicked" },
  logloss: { title: "LogLoss", worse: 1, text: "of the scores, less that of a constant" },
};

export async function show(context) {
  const now = h("div", { class: "page" });
  const past = h("div", {});
  const more = h("div", { class: "row" });
  fill(context.root, now, panel("Those before it", past, more));
  let before;
  let ended = [];

  function showPast(page, load) {
    fill(past, pastTable(ended));
    fill(more, page.next !== null && button("Older", () => load(page.next).catch((problem) => context.fail(problem, context.trouble)), { "data-focus": "older" }));
  }

  async function older(cursor) {
    const page = await get(`admin/canary?limit=20&before=${cursor}`, context.signal);
    ended = [...ended, ...page.ended];
    showPast(page, older);
  }

  async function refresh() {
    const page = await get("admin/canary?limit=20", context.signal);
    fill(context.trouble);
    fill(now, page.running ? running(page, refresh) : none(page));
    const text = JSON.stringify(page.ended);
    if (text === before) return;
    before = text;
    ended = page.ended;
    showPast(page, older);
  }
  await context.every(EVERY_SECONDS, refresh);
}

export const percent = (share) => `${Number((100 * share).toFixed(1))} %`;

function none({ share, minutes }) {
  return panel(
    "No canary runs",
    h("p", {}, share ? `The next version answers ${percent(share)} of the users first, for at most ${duration(minutes * 60)}.` : "A new version answers all users at once. With ASMG_CANARY_SHARE it would answer a share of them first."),
  );
}

function running({ at, running: canary }, refresh) {
  const done = async (promote) => (await decide(canary, promote)) && refresh();
  const whole = canary.since && seconds(canary.since, canary.until);
  const gone = canary.since && Math.min(whole, Math.max(0, seconds(canary.since, at)));
  return [
    panel(
      `Version ${canary.version} is on its way`,
      facts([
        ["Answers", `${percent(canary.share)} of the users`],
        ["Canary", version(canary.version)],
        ["Answers the others", version(canary.champion_version)],
        ["Since", canary.since ? time(canary.since) : "the api processes are loading it"],
        canary.since && ["Goes on at the latest", [time(canary.until), ` (${gone < whole ? `in ${duration(whole - gone)}` : "now"})`]],
      ]),
      canary.since && h("progress", { max: whole, value: gone, "aria-label": "Time of the canary that is over" }),
      h("div", { class: "row" }, button("Promote now…", () => done(true), { class: "primary", "data-focus": "promote" }), button("Take back…", () => done(false), { "data-focus": "revert" })),
    ),
    panel("Evidence so far", evidence(canary)),
  ];
}

function evidence({ numbers }) {
  if (!numbers) return h("p", { class: "muted" }, "Nothing was looked at yet. Clients have to log impressions through predictions (log_impressions) and to send the clicks.");
  const arms = [["canary", numbers.canary_users, numbers.canary_clicked], ["champion", numbers.champion_users, numbers.champion_clicked]];
  return [
    table({
      compact: true,
      caption: "The first impression of each user",
      columns: [{ label: "users of the" }, { label: "impressions", num: true }, { label: "with a click", num: true }, { label: "share", num: true }],
      rows: arms.map(([name, users, clicked]) => [name, count(users), count(clicked), users ? `${((100 * clicked) / users).toFixed(1)} %` : "–"]),
    }),
    h("p", { class: "muted" }, `Of ${count(numbers.impressions)} impressions that were looked at, the first of each user counts.`),
    numbers.clicks
      ? [h("div", { class: "charts" }, Object.keys(MEASURES).map((name) => interval(name, numbers[name]))), h("p", {}, h("b", {}, verdict(numbers)))]
      : h("p", {}, h("b", {}, "Too little to tell yet: "), "each side needs 100 users, and the canary's would have to make 30 clicks at the champion's rate."),
    h("p", { class: "muted" }, "The intervals hold at all times, so one may look as often as one likes. It goes back as soon as one of them is wholly on the worse side of 0, and on early when both are wholly on the better side of the margin. When its time is over it goes on."),
  ];
}

/** Whether an interval lies wholly beyond a number, on the side that is worse or better. */
const beyond = ({ low, high }, number, side) => (side > 0 ? low > number : high < number);

function verdict(numbers) {
  const shown = Object.entries(MEASURES).filter(([name, { worse }]) => beyond(numbers[name], 0, worse));
  if (shown.length) return `Shown to be worse by ${shown.map(([, { title }]) => title).join(" and ")}.`;
  const safe = Object.entries(MEASURES).every(([name, { worse }]) => beyond(numbers[name], numbers[name].bound, -worse));
  return safe ? "Shown to be no worse than by the margin." : "Not shown to be worse, and not yet shown to be no worse than by the margin.";
}

const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(4)}`;

/** An interval beside 0 and the margin, in a strip whose left is worse. */
function interval(name, found) {
  const { title, worse, text } = MEASURES[name];
  const far = 1.15 * Math.max(...[found.low, found.high, found.bound].map(Math.abs));
  const at = (number) => `${(50 - (42 * worse * number) / far).toFixed(2)}%`;
  const words = `${signed(found.difference)} (${signed(found.low)} to ${signed(found.high)}); margin ${signed(found.bound)}`;
  return h(
    "figure",
    { class: "chart interval" },
    h("figcaption", {}, h("h3", {}, title), h("span", {}, text)),
    s(
      "svg",
      { width: "100%", height: 74, role: "img", "aria-label": `${title}, canary less champion: ${words}. Left is worse.` },
      s("line", { class: "grid", x1: "4%", x2: "96%", y1: 42, y2: 42 }),
      s("line", { class: "zero", x1: at(0), x2: at(0), y1: 18, y2: 56 }),
      s("line", { class: "margin", x1: at(found.bound), x2: at(found.bound), y1: 24, y2: 56 }),
      s("line", { class: "range", x1: at(found.low), x2: at(found.high), y1: 42, y2: 42 }),
      s("circle", { class: "point", cx: at(found.difference), cy: 42, r: 5 }),
      s("text", { class: "axis", x: at(0), y: 12, "text-anchor": "middle" }, "as the champion"),
      s("text", { class: "axis", x: at(found.bound), y: 70, "text-anchor": "middle" }, "margin"),
      s("text", { class: "axis", x: "4%", y: 36, "text-anchor": "start" }, "worse"),
      s("text", { class: "axis", x: "96%", y: 36, "text-anchor": "end" }, "better"),
    ),
    h("p", { class: "readout" }, "canary less champion: ", h("b", {}, signed(found.difference)), ` (${signed(found.low)} to ${signed(found.high)}), margin ${signed(found.bound)}`),
  );
}

/** The numbers of a decision, a line each. */
function decidedBy({ canary_users: users, champion_users: others, ...numbers }) {
  const of = (name) => numbers[name] && `${signed(numbers[name].difference)} (${signed(numbers[name].low)} to ${signed(numbers[name].high)})`;
  const found = { users: `${count(users)} beside ${count(others)}`, clicks: of("clicks"), LogLoss: of("logloss") };
  return Object.fromEntries(Object.entries(found).filter(([, text]) => text));
}

function pastTable(canaries) {
  return table({
    caption: "Canaries that have ended, newest first",
    columns: [{ label: "version" }, { label: "outcome" }, { label: "beside" }, { label: "share", num: true }, { label: "announced" }, { label: "ended" }, { label: "by" }, { label: "why", wide: true }],
    rows: canaries.map((each) => [
      version(each.version),
      badge(each.state, STATES[each.state]),
      version(each.champion_version),
      percent(each.share),
      time(each.announced_at),
      time(each.ended_at),
      link(`#/audit?actor=${encodeURIComponent(each.ended_by)}`, each.ended_by),
      [each.reason, Object.keys(each.numbers ?? {}).length > 0 && h("details", { "data-focus": `canary ${each.version}` }, h("summary", { "data-focus": `numbers ${each.version}` }, "numbers"), pairs(decidedBy(each.numbers)))],
    ]),
    empty: "None yet.",
  });
}
