// The stages of a period's update, as they go on.

import { periodEvents } from "./api.js";
import { fill, h } from "./dom.js";
import { duration } from "./format.js";

const name = (stage) => stage.replaceAll("_", " ");

/** A period's stages; `usual` are those of an earlier one, for what is still to come. */
function stageList(document, usual = []) {
  const known = new Map(document.stages.map((stage) => [stage.stage, stage]));
  const active = document.status === "sealed" || document.status === "updating";
  const names = active ? [...new Set([...usual.map(({ stage }) => stage), ...known.keys()])] : [...known.keys()];
  if (!names.length) return h("p", { class: "muted" }, active ? "It waits for the worker." : "No stage has run.");
  return h(
    "ol",
    { class: "stages" },
    names.map((each) => {
      const stage = known.get(each);
      const before = usual.find((other) => other.stage === each)?.seconds;
      const state = stage?.status ?? "waiting";
      const text = { done: "✓", running: "…", waiting: "" }[state];
      const took = stage?.seconds ?? null;
      return h(
        "li",
        { class: state, "aria-current": state === "running" ? "step" : null },
        h("span", { class: "mark", "aria-hidden": "true" }, text),
        h("span", {}, name(each), h("span", { class: "sr" }, ` ${state}`)),
        h("span", { class: "muted" }, took !== null ? duration(took) : before ? `last time ${duration(before)}` : ""),
      );
    }),
  );
}

/** How far an update is, for eyes and for screen readers. */
function progressOf({ status, stage, progress }) {
  if (status !== "updating" || progress === null) return null;
  return h("progress", { max: 1, value: progress, "aria-label": `Update, ${stage ? name(stage) : ""}` });
}

const inWords = ({ period, status, stage, version }) =>
  status === "updating" ? `Period ${period}: ${stage ? name(stage) : "beginning"}.` : status === "updated" ? `Period ${period} is learned; version ${version} is published.` : `Period ${period} is ${status}.`;

/** Show the update of a period in `place` until it has ended; a stream that breaks off is opened again. */
export async function follow(context, number, place, usual = []) {
  const said = h("p", { role: "status", class: "said" });
  const shown = h("div", {});
  fill(place, said, shown);
  for (;;) {
    try {
      let ended = false;
      for await (const document of periodEvents(number, context.signal)) {
        const words = inWords(document);
        if (said.textContent !== words) said.textContent = words;
        fill(shown, progressOf(document), stageList(document, usual), document.error && h("p", { class: "banner warn" }, document.error));
        ended = ["updated", "quarantined", "skipped"].includes(document.status);
      }
      if (ended || context.signal.aborted) return;
    } catch (problem) {
      if (context.signal.aborted) return;
      if (problem.locked || problem.status === 404) throw problem;
      said.textContent = "The connection is lost; trying again.";
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}
