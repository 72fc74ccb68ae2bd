// What an operator wants to know first.

import { close } from "./actions.js";
import { openAlerts } from "./alerts.js";
import { get } from "./api.js";
import { percent } from "./canary.js";
import { badge, button, fill, h, link, panel } from "./dom.js";
import { count, duration, kind, period, score, seconds, status, time, version } from "./format.js";
import { scoreCharts } from "./scores.js";

const EVERY_SECONDS = 5;

export async function show(context) {
  const banner = h("div", { "aria-live": "polite" });
  const way = h("div", {});
  const cards = h("div", { class: "cards" });
  const charts = h("div", { class: "charts" });
  const alerts = h("div", {});
  fill(context.root, h("div", { class: "notes" }, banner, way), cards, panel("How well it predicts", h("p", { class: "muted" }, "Each model's score on the log of each period, before anything had learned it. "), charts), panel("Open alerts", alerts));
  let before;
  let charted;
  let told;

  async function refresh() {
    const [overview, found, page] = await Promise.all([
      get("admin/overview", context.signal),
      get("admin/alerts?open=true", context.signal),
      get("periods?limit=40", context.signal),
    ]);
    fill(context.trouble);
    const now = { ...overview, installation: { ...overview.installation, at: null }, found };
    const text = JSON.stringify([now, Math.round(overview.installation.worker.seconds_ago / 5)]);
    if (text !== before) {
      before = text;
      const wrong = troubles(overview, found.alerts);
      if (JSON.stringify(wrong) !== told) {
        told = JSON.stringify(wrong); // a screen reader says it when it changes, and not again and again
        fill(banner, bannerOf(wrong));
      }
      fill(way, wayOf(overview.installation.canary));
      fill(cards, cardsOf(overview));
      fill(alerts, openAlerts(found.alerts, refresh));
    }
    const scores = JSON.stringify(page.periods.map((each) => each.scores));
    if (scores !== charted) {
      charted = scores;
      fill(charts, scoreCharts(page.periods));
    }
  }
  await context.every(EVERY_SECONDS, refresh);
}

/** What is wrong, in sentences. */
function troubles({ checks, served_version: served, installation }, alerts) {
  const { model, periods, processes, refused_in_a_row: refused, worker } = installation;
  const parts = Object.entries(checks).filter(([, text]) => text !== "ok");
  return [
    ...alerts.map((alert) => [alert.message, alert.severity !== "warning"]),
    ...parts.map(([name, text]) => [`${name}: ${text}.`, true]),
    worker.seconds_ago === null && ["No worker is known to lead: closed periods wait.", true],
    worker.seconds_ago !== null && worker.stalled && [`The worker has not got any further for ${duration(worker.seconds_ago)}.`, true],
    periods.quarantined && [`${periods.quarantined === 1 ? "A period is" : `${periods.quarantined} periods are`} in quarantine: no model has learned it.`, true],
    processes.behind && [`${processes.behind} of ${processes.live} api processes serve an older version than they should.`, true],
    refused && !alerts.some((alert) => alert.kind === "gate_refused") && [`The gate has refused the newest ${refused === 1 ? "version" : `${refused} versions`}: an older model stays in service.`, true],
    model.active_from !== null && served !== model.version && [`This process serves v${served}; v${model.version} takes over.`, false],
  ].filter(Boolean);
}

function bannerOf(found) {
  if (!found.length) return h("p", { class: "banner ok" }, "All is well.");
  const kindOf = found.some(([, bad]) => bad) ? "bad" : "warn";
  return h("div", { class: `banner ${kindOf}` }, h("ul", { class: "plain" }, found.map(([text]) => h("li", {}, text))));
}

/** That a canary runs. */
function wayOf(canary) {
  if (!canary) return null;
  const how = canary.since ? `answers ${percent(canary.share)} of the users, before it answers all or none: ` : "is on its way to a share of the users: ";
  return h("p", { class: "banner busy" }, h("b", {}, "Canary: "), version(canary.version), ` ${how}`, link("#/canary", "how it fares"), ".");
}

const card = (title, value, ...more) => h("section", { class: "card" }, h("h2", {}, title), h("p", { class: "big" }, value), more);
const line = (...children) => h("p", { class: "muted" }, children);
const health = (text) => (text === "ok" ? badge("ok", "ok") : badge("trouble", "bad"));

function cardsOf({ checks, installation }) {
  const { at, model, open_period: open, newest, periods, processes, worker } = installation;
  const waiting = (periods.sealed ?? 0) + (periods.updating ?? 0);
  return [
    card(
      "Model in service",
      [version(model.version), " ", kind(model.kind)],
      line("made ", duration(seconds(model.created_at, at)), " ago", model.period ? [" from period ", period(model.period)] : ", the prior"),
      line(model.active_from ? ["served by all since ", time(model.active_from)] : "the api processes are loading it"),
      model.head !== model.version && line("the next update continues from ", version(model.head)),
    ),
    card(
      "Open period",
      [period(open.period), " ", h("small", {}, `${count(open.events)} events`)],
      line("open for ", duration(seconds(open.opened_at, at))),
      button("Close now…", async () => (await close(open.period, open.events)) && (location.hash = `#/periods/${open.period}`), { "data-focus": "close" }),
    ),
    card(
      "Newest closed period",
      newest ? [period(newest.period), " ", status(newest.status)] : "none yet",
      newest?.stage && line(newest.stage.replaceAll("_", " "), newest.progress === null ? "" : `, ${Math.round(newest.progress * 100)} %`),
      newest?.scores.generated && line(`AUC ${score(newest.scores.generated.auc)}, LogLoss ${score(newest.scores.generated.logloss)}`),
      line(waiting ? `${waiting} waiting or being learned` : "none waits", periods.quarantined ? `, ${periods.quarantined} in quarantine` : ""),
    ),
    card(
      "Worker and api",
      worker.seconds_ago === null ? badge("unknown", "bad") : worker.stalled ? badge("stalled", "bad") : badge("at work", "ok"),
      line(worker.seconds_ago === null ? "none is known to lead" : `got further ${duration(worker.seconds_ago)} ago`),
      line(`${processes.ready} of ${processes.live} api ${processes.live === 1 ? "process has" : "processes have"} loaded the model`),
      processes.behind > 0 && line(badge(`${processes.behind} behind`, "bad")),
    ),
    card(
      "Parts",
      Object.values(checks).every((text) => text === "ok") ? badge("all answer", "ok") : badge("trouble", "bad"),
      h("ul", { class: "parts" }, Object.entries(checks).map(([name, text]) => h("li", {}, name, " ", health(text)))),
    ),
  ];
}
