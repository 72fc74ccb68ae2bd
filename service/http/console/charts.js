// One kind of chart: lines over periods. Lines differ by colour (Okabe and Ito), by dash and by the label at their end.

import { fill, h, s, table } from "./dom.js";
import { axisText, gridLine, readable } from "./plot.js";

const STYLES = { generated: 0, incremental: 1, previous: 2, frozen: 3, yardstick: 4 };
const OTHERS = [5, 6, 7];
const HEIGHT = 230;
const LABEL_HEIGHT = 14;
const LETTER_WIDTH = 6.4;

/** Round numbers in [low, high], about `wanted` of them. */
export function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

/** Numbers with as many decimals as the one that needs most. */
function labelled(numbers) {
  const decimals = Math.max(...numbers.map((number) => (String(Number(number.toFixed(6))).split(".")[1] ?? "").length));
  return numbers.map((number) => [number, number.toFixed(decimals)]);
}

/** The parts of a line between missing values, as lists of [x, y]. */
export function parts(points) {
  const found = [[]];
  for (const point of points) {
    if (point === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((part) => part.length);
}

/** Heights at which labels do not cover each other, as near to the wanted ones as their order allows. */
export function spread(wanted, least, low, high) {
  const order = wanted.map((_, n) => n).sort((a, b) => wanted[a] - wanted[b]);
  const placed = [...wanted];
  let at = low;
  for (const n of order) at = (placed[n] = Math.max(placed[n], at)) + least;
  at = high;
  for (const n of order.reverse()) at = (placed[n] = Math.min(placed[n], at)) - least;
  return placed;
}

/**
 * A line chart with a read-out for pointer and keyboard, and its numbers as a table.
 *
 * `x` are the periods, ascending; `series` are `{name, values}` with null for a missing value.
 */
export function lineChart({ title, hint, x, series, digits = 4, xName = "period" }) {
  const shown = series.filter(({ values }) => values.some((value) => value !== null));
  const figure = h("figure", { class: "chart" }, h("figcaption", {}, h("h3", {}, title), hint && h("span", {}, hint)));
  if (!shown.length) {
    figure.append(h("p", { class: "muted" }, "No period has been scored yet; the second one that is closed is the first."));
    return figure;
  }
  const others = shown.map(({ name }) => name).filter((name) => !(name in STYLES));
  const style = (name) => STYLES[name] ?? OTHERS[others.indexOf(name) % OTHERS.length];
  const text = (value) => (value === null ? "–" : value.toFixed(digits));

  function read(n) {
    const styled = shown.map(({ name, values }) => h("span", { class: `key s${style(name)}` }, swatch(), `${name} `, h("b", {}, text(values[n]))));
    const words = shown.map(({ name, values }) => `${name} ${text(values[n])}`).join(", ");
    return { shown: [h("span", {}, `${xName} ${x[n]}`), styled], words: `${xName} ${x[n]}: ${words}` };
  }

  function draw(width) {
    const label = Math.max(...shown.map(({ name }) => name.length)) * LETTER_WIDTH + 14;
    const box = { left: 46, right: width - label, top: 10, bottom: HEIGHT - 24 };
    const known = shown.flatMap(({ values }) => values.filter((value) => value !== null));
    const room = (Math.max(...known) - Math.min(...known)) * 0.08 || 0.01;
    const [low, high] = [Math.min(...known) - room, Math.max(...known) + room];
    const atX = (n) => (x.length === 1 ? (box.left + box.right) / 2 : box.left + 6 + ((box.right - box.left - 12) * n) / (x.length - 1));
    const atY = (value) => box.bottom - ((box.bottom - box.top) * (value - low)) / (high - low);
    const lines = labelled(ticks(low, high, 5)).map(([value, words]) => gridLine(box, atY(value), words));
    const every = Math.max(1, Math.ceil(x.length / Math.max(1, Math.floor((box.right - box.left) / 34))));
    const below = x.map((value, n) => (x.length - 1 - n) % every === 0 && axisText(atX(n), HEIGHT - 6, String(value)));
    const drawn = shown.map(({ name, values }) => {
      const points = values.map((value, n) => (value === null ? null : [atX(n), atY(value)]));
      return s(
        "g",
        { class: `series s${style(name)}` },
        parts(points).map((part) => (part.length > 1 ? s("polyline", { points: part.map((point) => point.join()).join(" ") }) : s("circle", { cx: part[0][0], cy: part[0][1], r: 3 }))),
      );
    });
    const ends = shown.map(({ values }) => {
      const n = values.findLastIndex((value) => value !== null);
      return [atX(n), atY(values[n])];
    });
    const heights = spread(ends.map(([, y]) => y), LABEL_HEIGHT, box.top + 4, box.bottom);
    const names = shown.map(({ name }, n) => [
      s("line", { class: `lead s${style(name)}`, x1: ends[n][0], y1: ends[n][1], x2: box.right + 4, y2: heights[n] }),
      s("text", { class: `name s${style(name)}`, x: box.right + 7, y: heights[n] + 4 }, name),
    ]);
    const cross = s("g", { class: "cross" });
    return {
      content: [lines, below, drawn, names, cross],
      nearest: (at) => (x.length === 1 ? 0 : Math.round(((at - box.left - 6) / (box.right - box.left - 12)) * (x.length - 1))),
      mark: (n) => {
        const dots = shown.map(({ name, values }) => values[n] !== null && s("circle", { class: `dot s${style(name)}`, cx: atX(n), cy: atY(values[n]), r: 3.5 }));
        fill(cross, s("line", { x1: atX(n), x2: atX(n), y1: box.top, y2: box.bottom }), dots);
      },
    };
  }

  const lines = readable({
    label: `${title}, line chart; arrow keys read it ${xName} by ${xName}`,
    height: HEIGHT,
    values: x,
    read,
    draw,
    returns: true,
  });
  const numbers = table({
    caption: title,
    compact: true,
    columns: [{ label: xName }, ...shown.map(({ name }) => ({ label: name, num: true }))],
    rows: x.map((value, n) => [String(value), ...shown.map(({ values }) => text(values[n]))]).reverse(),
  });
  figure.append(...lines, h("details", { class: "numbers", "data-focus": `numbers ${title}` }, h("summary", { "data-focus": `summary ${title}` }, "Numbers as a table"), numbers));
  return figure;
}

const swatch = () => s("svg", { width: 22, height: 8, "aria-hidden": "true" }, s("polyline", { points: "0,4 22,4" }));
