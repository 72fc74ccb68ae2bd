// What versions still know of earlier periods: a table of versions and periods, whose cells have numbers and shades.

import { h, table } from "./dom.js";
import { score, version } from "./format.js";

const MOST = 12;
const STEPS = [0.01, 0.03, 0.1];

/** How much a difference is shaded: 0 to 3; the letter says whether it is worse or better. */
function shade(better) {
  const step = STEPS.filter((least) => Math.abs(better) >= least).length;
  return step ? `${better < 0 ? "w" : "b"}${step}` : "";
}

const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(3)}`;

/**
 * The newest versions and periods.
 *
 * `measure` is "auc" or "logloss". A cell of the version that had just learned the period has its score, in a frame; the
 * others have by how much they differ from that.
 */
export function forgettingMatrix({ profiles, cells }, measure) {
  const learned = new Map(profiles.map((each) => [each.period, each.learned_version]));
  const known = new Map(cells.filter((cell) => cell[measure] !== null && cell.version >= (learned.get(cell.period) ?? Infinity)).map((cell) => [`${cell.version}/${cell.period}`, cell]));
  const all = [...known.values()];
  const periods = [...new Set(all.map((cell) => cell.period))].sort((a, b) => a - b).slice(-MOST);
  const versions = [...new Set(all.filter((cell) => periods.includes(cell.period)).map((cell) => cell.version))].sort((a, b) => b - a).slice(0, MOST);
  const name = measure === "auc" ? "AUC" : "LogLoss";
  const sign = measure === "auc" ? 1 : -1;
  const fresh = (number) => known.get(`${learned.get(number)}/${number}`)?.[measure] ?? null;
  const differences = (of) => periods.map((number) => {
    const cell = known.get(`${of}/${number}`);
    return cell && learned.get(number) !== of && fresh(number) !== null ? cell[measure] - fresh(number) : null;
  });

  function cellOf(of, number, difference) {
    const cell = known.get(`${of}/${number}`);
    if (!cell) return "";
    const title = `v${of} on period ${number}: ${name} ${score(cell[measure])} on ${cell.events} interactions`;
    if (learned.get(number) === of) return h("span", { class: "heat own", title: `${title}, which it had just learned` }, score(cell[measure], 3));
    if (difference === null) return h("span", { class: "heat", title }, "?");
    return h("span", { class: `heat ${shade(sign * difference)}`, title: `${title}; ${score(fresh(number))} of v${learned.get(number)}, which had just learned it` }, signed(difference));
  }

  const rows = versions.map((of) => {
    const row = differences(of);
    const counted = row.filter((each) => each !== null);
    const mean = counted.length ? counted.reduce((sum, each) => sum + each, 0) / counted.length : null;
    return [version(of), mean === null ? "–" : h("span", { class: `heat ${shade(sign * mean)}` }, signed(mean)), ...periods.map((number, n) => cellOf(of, number, row[n]))];
  });
  return h(
    "div",
    { class: "matrix" },
    table({
      compact: true,
      caption: `${name} by version and period`,
      columns: [{ label: "version" }, { label: "mean difference", num: true }, ...periods.map((number) => ({ label: `period ${number}`, num: true }))],
      rows,
      empty: "Nothing yet: a version is scored on what was kept of periods after it was published.",
    }),
  );
}
