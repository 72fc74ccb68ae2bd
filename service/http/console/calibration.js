// The calibration curve: how often was clicked what a model predicted. Read by pointer, arrow keys, and as a table.

import { fill, h, s, table } from "./dom.js";
import { count, percent } from "./format.js";

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

/** A chart of bins `{rows, predicted, clicked}`, by ascending prediction, beside its numbers. */
export function calibrationCurve(bins) {
  const title = "Calibration curve";
  const points = bins.map((bin) => ({ ...bin, range: interval(bin.clicked, bin.rows) }));
  const shown = points.flatMap(({ predicted, range }) => [predicted, ...range]);
  const [low, high] = [0.8 * Math.min(...shown), Math.min(1, 1.05 * Math.max(...shown))];
  const readout = h("p", { class: "readout" });
  const plot = h("div", { class: "plot tall" });
  const words = ({ rows, predicted, clicked, range }) => `predicted ${percent(predicted)}, clicked ${percent(clicked)} (${percent(range[0])} to ${percent(range[1])}), ${count(rows)} interactions`;
  let cursor = points.length - 1;
  let mark = () => {};

  function tell() {
    fill(readout, h("span", {}, `bin ${cursor + 1} of ${points.length}: ${words(points[cursor])}`));
    const svg = plot.firstElementChild;
    svg?.setAttribute("aria-valuenow", String(cursor + 1));
    svg?.setAttribute("aria-valuetext", `bin ${cursor + 1}: ${words(points[cursor])}`);
    mark();
  }

  function move(to) {
    cursor = Math.max(0, Math.min(points.length - 1, to));
    tell();
  }

  function draw(width) {
    const focused = plot.contains(document.activeElement);
    const box = { left: 50, right: width - 10, top: 10, bottom: HEIGHT - 38 };
    // By square roots, because most predictions are small and lie close together.
    const part = (value) => (Math.sqrt(value) - Math.sqrt(low)) / (Math.sqrt(high) - Math.sqrt(low));
    const atX = (value) => box.left + (box.right - box.left) * part(value);
    const atY = (value) => box.bottom - (box.bottom - box.top) * part(value);
    const marked = TICKS.filter((value) => value >= low && value <= high);
    const across = apart(marked.map((value) => [value, atY(value)]), 16).map(([value, y]) => [
      s("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }),
      s("text", { class: "axis", x: box.left - 6, y: y + 4, "text-anchor": "end" }, `${Number((100 * value).toPrecision(2))} %`),
    ]);
    const below = apart(marked.map((value) => [value, atX(value)]), 44).map(([value, x]) => s("text", { class: "axis", x, y: box.bottom + 16, "text-anchor": "middle" }, `${Number((100 * value).toPrecision(2))} %`));
    const drawn = points.map(({ predicted, clicked, range }) => [
      s("line", { class: "lead s0", x1: atX(predicted), x2: atX(predicted), y1: atY(range[0]), y2: atY(range[1]) }),
      s("circle", { class: "dot s0", cx: atX(predicted), cy: atY(clicked), r: 3.5 }),
    ]);
    const ring = s("circle", { class: "ring", r: 7 });
    const places = points.map(({ predicted }) => atX(predicted));
    const svg = s(
      "svg",
      {
        viewBox: `0 0 ${width} ${HEIGHT}`,
        width,
        height: HEIGHT,
        tabindex: 0,
        role: "slider",
        "aria-label": `${title}; arrow keys read it bin by bin`,
        "aria-valuemin": 1,
        "aria-valuemax": points.length,
        onkeydown: (event) => {
          const steps = { ArrowLeft: cursor - 1, ArrowDown: cursor - 1, ArrowRight: cursor + 1, ArrowUp: cursor + 1, Home: 0, End: points.length - 1 };
          if (event.key in steps) {
            event.preventDefault();
            move(steps[event.key]);
          }
        },
        onpointermove: (event) => {
          const at = event.clientX - svg.getBoundingClientRect().left;
          move(places.reduce((best, x, n) => (Math.abs(x - at) < Math.abs(places[best] - at) ? n : best), 0));
        },
      },
      across,
      below,
      s("line", { class: "even", x1: box.left, y1: box.bottom, x2: box.right, y2: box.top }),
      s("text", { class: "axis", x: (box.left + box.right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "predicted"),
      s("text", { class: "axis", x: box.left + 6, y: box.top + 12 }, "clicked"),
      drawn,
      ring,
    );
    mark = () => {
      ring.setAttribute("cx", atX(points[cursor].predicted));
      ring.setAttribute("cy", atY(points[cursor].clicked));
    };
    fill(plot, svg);
    tell();
    if (focused) svg.focus({ preventScroll: true });
  }

  let before = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== before) draw((before = width));
  }).observe(plot);
  const numbers = table({
    caption: title,
    compact: true,
    columns: [{ label: "bin" }, { label: "events", num: true }, { label: "predicted", num: true }, { label: "clicked", num: true }, { label: "95 % interval", num: true }],
    rows: points.map(({ rows, predicted, clicked, range }, n) => [String(n + 1), count(rows), percent(predicted), percent(clicked), `${percent(range[0]).slice(0, -2)} – ${percent(range[1])}`]),
  });
  return h("div", { class: "charts" }, h("figure", { class: "chart" }, h("figcaption", {}, h("h3", {}, title), h("span", {}, "below the line it promises too much")), readout, plot), h("div", {}, numbers));
}
