// One period: its update as it goes on, scores, labels.

import { get, getIfThere } from "./api.js";
import { facts, fill, h, panel } from "./dom.js";
import { count, duration, seconds, status, time, version } from "./format.js";
import { periodActions } from "./periods.js";
import { scoreTable } from "./scores.js";
import { follow } from "./stages.js";

export async function show(context) {
  const number = Number(context.id);
  const update = h("div", {});
  const rest = h("div", { class: "page" });
  async function refresh() {
    const document = await get(`periods/${context.id}`, context.signal);
    fill(context.root, panel("Summary", summary(document), periodActions(document, refresh)), document.status !== "open" && panel("Update", update), rest);
    fill(rest, ended(document));
    return document;
  }
  const document = await refresh();
  if (document.status === "open") return;
  const before = number > 1 ? await getIfThere(`periods/${number - 1}`, context.signal) : null;
  await follow(context, number, update, before?.stages);
  if (!["updated", "skipped"].includes(document.status)) await refresh();
}

function summary(document) {
  return facts([
    ["Status", status(document.status)],
    ["Events", count(document.events)],
    ["Opened", time(document.opened_at)],
    ["Closed", time(document.sealed_at)],
    ["Update ended", document.finished_at ? [time(document.finished_at), ` after ${duration(seconds(document.sealed_at, document.finished_at))}`] : "–"],
    ["Version", version(document.version)],
    (document.attempts > 0 || document.crashes > 0) && ["Failed attempts", `${document.attempts}, crashes in a row ${document.crashes}`],
    document.error && ["Trouble", document.error],
  ]);
}

function ended(document) {
  return [
    Object.keys(document.scores).length > 0 && panel("Scores", h("p", { class: "muted" }, "Of the models that existed before, on its log, before anything had learned it."), scoreTable(`Scores on period ${document.period}`, document.scores)),
    Object.entries(document.labels ?? {}).some(([name, value]) => name !== "window_seconds" && value > 0) && panel("Impressions and clicks", facts(Object.entries(document.labels).map(([name, value]) => [name.replaceAll("_", " "), typeof value === "number" ? count(value) : JSON.stringify(value)]))),
  ];
}
