// Numbers, times and words.

import { badge, h, link } from "./dom.js";

export const count = (number) => (number ?? 0).toLocaleString("en");
export const score = (number, digits = 4) => (number === null || number === undefined ? "–" : number.toFixed(digits));

/** A share in per cent, to three digits. */
export const percent = (share) => `${share ? (100 * share).toPrecision(3) : 0} %`;

const two = (number) => String(number).padStart(2, "0");

/** A moment by the browser's clock, to the minute; the title has it in full. */
export function time(moment) {
  if (!moment) return "–";
  const at = new Date(moment);
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return h("time", { datetime: moment, title: at.toString() }, `${day} ${two(at.getHours())}:${two(at.getMinutes())}`);
}

/** A duration in its two largest units. */
export function duration(seconds) {
  if (seconds < 1) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const parts = [
    [Math.floor(seconds / 86400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [Math.round(seconds) % 60, "s"],
  ];
  const first = parts.findIndex(([number]) => number);
  return parts.slice(first, first + 2).filter(([number]) => number).map(([number, unit]) => `${number} ${unit}`).join(" ");
}

export const seconds = (from, to) => (new Date(to) - new Date(from)) / 1000;

/** The names of the models that a period is scored with. */
export const MODELS = {
  generated: "generated",
  incremental: "incremental",
  previous: "previous",
  baseline: "frozen",
  yardstick: "yardstick",
};

export const modelName = (name) => MODELS[name] ?? name.replace(/^shadow:/, "shadow ");

/** The models of some scores, in the order in which they are shown. */
export function modelsOf(scores) {
  const known = Object.keys(MODELS);
  const place = (name) => (known.includes(name) ? known.indexOf(name) : known.length);
  return [...new Set(scores.flatMap((each) => Object.keys(each)))].sort((a, b) => place(a) - place(b) || a.localeCompare(b));
}

export const version = (number) => (number === null || number === undefined ? "–" : link(`#/versions/${number}`, `v${number}`));
export const period = (number) => (number ? link(`#/periods/${number}`, String(number)) : "–");

const KINDS = { generated: "ok", incremental: "ok", previous: "bad", prior: "" };

/** What the gate let a version serve. */
export const kind = (name) => badge(name === "previous" ? "refused" : name, KINDS[name] ?? "");

const STATUSES = { open: "", sealed: "warn", updating: "busy", updated: "ok", quarantined: "bad", skipped: "" };

export const status = (name) => badge(name, STATUSES[name] ?? "");

const isEmpty = (value) => value === null || value === "" || (typeof value === "object" && !Object.keys(value).length);

/** Names and values in one line, but for values that say nothing. */
export const pairs = (values) =>
  Object.entries(values ?? {}).filter(([, value]) => !isEmpty(value)).map(([name, value]) =>
    h("span", { class: "pair" }, h("b", {}, name), " ", Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value)),
  );
