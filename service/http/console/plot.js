// What charts share: a drawing as wide as its place, which pointer and arrow keys read point by point.

import { fill, h, s } from "./dom.js";

/** A line across `box` at the height `y`, with its words at the left. */
export function gridLine(box, y, words) {
  return [
    s("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }),
    s("text", { class: "axis", x: box.left - 6, y: y + 4, "text-anchor": "end" }, words),
  ];
}

/** Words of an axis, centred at `x`. */
export function axisText(x, y, words) {
  return s("text", { class: "axis", x, y, "text-anchor": "middle" }, words);
}

/**
 * A line that says what is at the cursor, and the drawing below it, again for each width that its place gets.
 *
 * `values` are the numbers of the points, ascending; `read(n)` gives `shown`, nodes for the line, and `words`, the same
 * as text; `draw(width)` gives `content`, nodes of the SVG, `nearest(x)`, the point at a pixel, and `mark(n)`, which
 * marks a point in them. The cursor begins at the last point, and `returns` there when the pointer leaves.
 */
export function readable({ label, height, values, read, draw, returns = false, kind = "plot" }) {
  const readout = h("p", { class: "readout" });
  const plot = h("div", { class: kind });
  const last = values.length - 1;
  let cursor = last;
  let mark = () => {};

  function tell() {
    const { shown, words } = read(cursor);
    fill(readout, shown);
    const svg = plot.firstElementChild;
    svg?.setAttribute("aria-valuenow", String(values[cursor]));
    svg?.setAttribute("aria-valuetext", words);
    mark(cursor);
  }

  function move(to) {
    const next = Math.max(0, Math.min(last, to));
    if (next !== cursor) {
      cursor = next;
      tell();
    }
  }

  function redraw(width) {
    const focused = plot.contains(document.activeElement);
    const drawn = draw(width);
    const svg = s(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`,
        width,
        height,
        tabindex: 0,
        role: "slider",
        "aria-label": label,
        "aria-valuemin": values[0],
        "aria-valuemax": values[last],
        onkeydown: (event) => {
          const steps = { ArrowLeft: cursor - 1, ArrowDown: cursor - 1, ArrowRight: cursor + 1, ArrowUp: cursor + 1, Home: 0, End: last };
          if (event.key in steps) {
            event.preventDefault();
            move(steps[event.key]);
          }
        },
        onpointermove: (event) => move(drawn.nearest(event.clientX - svg.getBoundingClientRect().left)),
        onpointerleave: () => returns && move(last),
      },
      drawn.content,
    );
    mark = drawn.mark;
    fill(plot, svg);
    tell();
    if (focused) svg.focus({ preventScroll: true });
  }

  let before = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== before) redraw((before = width));
  }).observe(plot);
  return [readout, plot];
}
