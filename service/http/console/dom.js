// Elements, tables, dialogs and messages. Text only ever becomes text nodes: nothing here makes HTML of strings.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: `h("p", {class: "muted"}, "text", other)`. */
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);

/** An SVG element. */
export const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

/** A selector by which the element that has the focus is found again when it was replaced by an equal one. */
function focused() {
  const element = document.activeElement ?? document.body;
  if (element.dataset.focus) return `[data-focus="${CSS.escape(element.dataset.focus)}"]`;
  const href = element.getAttribute("href");
  return href && `a[href="${CSS.escape(href)}"]`;
}

/** Replace what an element holds; the focus stays on what has the same `data-focus`, or leads to the same place. */
export function fill(element, ...children) {
  const again = element.contains(document.activeElement) ? focused() : null;
  const open = new Set([...element.querySelectorAll("details[open][data-focus]")].map((each) => each.dataset.focus));
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
  for (const each of element.querySelectorAll("details[data-focus]")) each.open ||= open.has(each.dataset.focus);
  if (again) element.querySelector(again)?.focus({ preventScroll: true });
  return element;
}

/**
 * A table. On a narrow screen each row becomes a card, unless it is `compact`: numbers that one compares. The roles are
 * spelled out, because `display` would take them away.
 * Columns are `{label, num, wide}`; a cell is text, an element, or a list of them; `rows` may be `{cells, class}`.
 */
export function table({ caption, columns, rows, compact = false, empty = "None." }) {
  if (!rows.length) return h("p", { class: "muted" }, empty);
  const head = columns.map(({ label, num, hidden }) =>
    h("th", { role: "columnheader", scope: "col", class: num && "num" }, hidden ? h("span", { class: "sr" }, label) : label),
  );
  const body = rows.map((row) => {
    const { cells, ...attributes } = Array.isArray(row) ? { cells: row } : row;
    return h(
      "tr",
      { role: "row", ...attributes },
      cells.map((cell, n) => {
        const { label, num, wide, hidden } = columns[n];
        if (Array.isArray(cell)) cell = cell.flat(Infinity).some(Boolean) ? h("span", {}, cell) : ""; // one part, beside the label of a card
        const classes = [num && "num", wide && "wide"].filter(Boolean).join(" ");
        const data = { class: classes || null, "data-label": hidden ? null : label };
        return n === 0
          ? h("th", { role: "rowheader", scope: "row", ...data }, cell ?? "")
          : h("td", { role: "cell", ...data }, cell ?? "");
      }),
    );
  });
  return scrolling(
    caption,
    h(
      "table",
      { role: "table", class: compact ? "compact" : "stacked" },
      h("caption", { class: "sr" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
      h("tbody", { role: "rowgroup" }, body),
    ),
  );
}

/** A place that can be scrolled sideways, by keyboard too, while what it holds is wider. */
function scrolling(name, wide) {
  const place = h("div", { class: "scroll" }, wide);
  new ResizeObserver(() => {
    const needed = place.scrollWidth > place.clientWidth;
    for (const [attribute, value] of Object.entries({ tabindex: "0", role: "region", "aria-label": name })) {
      if (needed) place.setAttribute(attribute, value);
      else place.removeAttribute(attribute);
    }
  }).observe(place);
  return place;
}

let ids = 0;

/** A labelled field: `field("Reason", h("input", …), "what it is for")`. */
export function field(label, control, hint) {
  control.id ||= `field-${++ids}`;
  const parts = [h("label", { for: control.id }, label), control];
  if (hint) {
    const id = `${control.id}-hint`;
    control.setAttribute("aria-describedby", id);
    parts.push(h("p", { class: "hint", id }, hint));
  }
  return h("div", { class: "field" }, parts);
}

/** The field for the reason that the audit keeps. */
export function reasonField(required = true) {
  const input = h("input", { name: "reason", maxlength: 1000, required, autocomplete: "off" });
  return field(required ? "Reason" : "Reason (optional)", input, "The audit keeps it, with your key's name.");
}

/**
 * A dialog with a form. `submit(data)` does the work; its error is shown in the dialog, which stays open then. Resolves
 * to what `submit` returned, or undefined where it was cancelled.
 */
export function ask({ title, body, action, danger = false, cancel = "Cancel", submit }) {
  return new Promise((resolve) => {
    const from = focused();
    let result;
    const fault = h("p", { class: "banner bad", role: "alert", hidden: true });
    const confirm = h("button", { type: "submit", class: danger ? "danger" : "primary" }, action);
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: `dialog-${++ids}` }, title),
      body,
      fault,
      h(
        "div",
        { class: "buttons" },
        cancel && h("button", { type: "button", onclick: () => dialog.close() }, cancel),
        confirm,
      ),
    );
    const dialog = h("dialog", { "aria-labelledby": `dialog-${ids}` }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (confirm.disabled) return;
      confirm.disabled = true;
      confirm.setAttribute("aria-busy", "true");
      fault.hidden = true;
      try {
        result = await submit?.(new FormData(form));
        dialog.close();
      } catch (problem) {
        fault.textContent = problem.message;
        fault.hidden = false;
      } finally {
        confirm.disabled = false;
        confirm.removeAttribute("aria-busy");
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      // The page may have replaced the button meanwhile.
      if (from && document.activeElement === document.body) document.querySelector(from)?.focus({ preventScroll: true });
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal(); // it keeps the focus inside, closes with Escape, and gives the focus back
    (form.querySelector("input:not([type=radio], [type=checkbox]), textarea, [autofocus]") ?? confirm).focus();
  });
}

/** A message that goes away; screen readers read it. */
export function toast(text, kind = "ok") {
  const message = h("p", { class: `toast ${kind}` }, text);
  document.getElementById("toasts").append(message);
  setTimeout(() => message.remove(), 8000);
}

export const button = (label, onclick, more = {}) => h("button", { type: "button", onclick, ...more }, label);
export const link = (href, text) => h("a", { href }, text);
export const badge = (text, kind = "") => h("span", { class: `badge ${kind}` }, text);

/** A panel with a heading. */
export const panel = (title, ...children) => h("section", { class: "panel" }, h("h2", {}, title), children);

/** Names and values. */
export const facts = (pairs) =>
  h(
    "dl",
    { class: "facts" },
    pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
