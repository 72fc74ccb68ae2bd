// The calibration curve: how often was clicked what a model predicted. Read by pointer, arrow keys, and as a table.

import { h, s, table } from "./dom.js";
import { count, percent } from "./format.js";
import { axisText, gridLine, readable } from "./plot.js";

const HEIGHT = 260;
const Z = 1.959964; // standard errors on each side of a 95 % interval
const TICKS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1];

/** Wilson's 95 % interval of a click rate: right for few clicks too, and for none. */
export function interval(rate, rows) {
  const square = (Z * Z) / rows;
  const middle = rate + square / 2;
  const half = Z * Math.sqrt((rate * (1 - rate) + square / 4) / rows);
  return [Math.max(0, (middle - half) / (1 + square)), Math.min(1, (middle + half) / (1 + square))];
}

/** Those of the ticks that have `least` pixels between them, from the last one down. */
function apart(places, least) {
  const kept = [];
  for (const [value, at] of places.toReversed()) {
    if (!kept.length || Math.abs(kept.at(-1)[1] - at) >= least) kept.push([value, at]);
  }
  return kept;
}

const rate = (value) => `${Number((100 * value).toPrecision(2))} %`;

/** A chart of bins `{rows, predicted, clicked}`, by ascending prediction, beside its numbers. */
export function calibrationCurve(bins) {
  const title = "Calibration curve";
  const points = bins.map((bin) => ({ ...bin, range: interval(bin.clicked, bin.rows) }));
  const shown = points.flatMap(({ predicted, range }) => [predicted, ...range]);
  const [low, high] = [0.8 * Math.min(...shown), Math.min(1, 1.05 * Math.max(...shown))];
  const words = ({ rows, predicted, clicked, range }) => `predicted ${percent(predicted)}, clicked ${percent(clicked)} (${percent(range[0])} to ${percent(range[1])}), ${count(rows)} interactions`;

  function draw(width) {
    const box = { left: 50, right: width - 10, top: 10, bottom: HEIGHT - 38 };
    // By square roots, because most predictions are small and lie close together.
    const part = (value) => (Math.sqrt(value) - Math.sqrt(low)) / (Math.sqrt(high) - Math.sqrt(low));
    const atX = (value) => box.left + (box.right - box.left) * part(value);
    const atY = (value) => box.bottom - (box.bottom - box.top) * part(value);
    const marked = TICKS.filter((value) => value >= low && value <= high);
    const across = apart(marked.map((value) => [value, atY(value)]), 16).map(([value, y]) => gridLine(box, y, rate(value)));
    const below = apart(marked.map((value) => [value, atX(value)]), 44).map(([value, x]) => axisText(x, box.bottom + 16, rate(value)));
    const drawn = points.map(({ predicted, clicked, range }) => [
      s("line", { class: "lead s0", x1: atX(predicted), x2: atX(predicted), y1: atY(range[0]), y2: atY(range[1]) }),
      s("circle", { class: "dot s0", cx: atX(predicted), cy: atY(clicked), r: 3.5 }),
    ]);
    const ring = s("circle", { class: "ring", r: 7 });
    const places = points.map(({ predicted }) => atX(predicted));
    return {
      content: [
        across,
        below,
        s("line", { class: "even", x1: box.left, y1: box.bottom, x2: box.right, y2: box.top }),
        axisText((box.left + box.right) / 2, HEIGHT - 4, "predicted"),
        s("text", { class: "axis", x: box.left + 6, y: box.top + 12 }, "clicked"),
        drawn,
        ring,
      ],
      nearest: (at) => places.reduce((best, x, n) => (Math.abs(x - at) < Math.abs(places[best] - at) ? n : best), 0),
      mark: (n) => {
        ring.setAttribute("cx", places[n]);
        ring.setAttribute("cy", atY(points[n].clicked));
      },
    };
  }

  const curve = readable({
    label: `${title}; arrow keys read it bin by bin`,
    height: HEIGHT,
    kind: "plot tall",
    values: points.map((_, n) => n + 1),
    read: (n) => ({ shown: h("span", {}, `bin ${n + 1} of ${points.length}: ${words(points[n])}`), words: `bin ${n + 1}: ${words(points[n])}` }),
    draw,
  });
  const numbers = table({
    caption: title,
    compact: true,
    columns: [{ label: "bin" }, { label: "events", num: true }, { label: "predicted", num: true }, { label: "clicked", num: true }, { label: "95 % interval", num: true }],
    rows: points.map(({ rows, predicted, clicked, range }, n) => [String(n + 1), count(rows), percent(predicted), percent(clicked), `${percent(range[0]).slice(0, -2)} – ${percent(range[1])}`]),
  });
  return h("div", { class: "charts" }, h("figure", { class: "chart" }, h("figcaption", {}, h("h3", {}, title), h("span", {}, "below the line it promises too much")), curve), h("div", {}, numbers));
}
