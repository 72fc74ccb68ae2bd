// Starts the console: which page is shown, and the form for the key.

import { get, key } from "./api.js";
import { field, fill, h } from "./dom.js";

const PAGES = [
  { path: "", title: "Overview", load: () => import("./overview.js") },
  { path: "versions", title: "Versions", load: () => import("./versions.js"), one: () => import("./version.js") },
  { path: "canary", title: "Canary", load: () => import("./canary.js") },
  { path: "periods", title: "Periods", load: () => import("./periods.js"), one: () => import("./period.js") },
  { path: "guardrails", title: "Guardrails", load: () => import("./guardrails.js") },
  { path: "try", title: "Try it", load: () => import("./try.js") },
  { path: "keys", title: "Keys", load: () => import("./keys.js") },
  { path: "audit", title: "Audit", load: () => import("./audit.js") },
  { path: "webhooks", title: "Webhooks", load: () => import("./webhooks.js") },
];

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const leave = document.getElementById("leave");
let leaving = new AbortController();

nav.append(...PAGES.map(({ path, title }) => h("li", {}, h("a", { href: `#/${path}`, "data-path": path }, title))));
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the part of the address after # names the page
  main.focus();
});
leave.addEventListener("click", () => {
  key.clear();
  askForKey("The key is forgotten.");
});
addEventListener("hashchange", () => show(true));

/** What a page gets: a place to put itself, what the address says, and an end. */
function contextOf(root, id, query, signal) {
  return {
    root,
    id,
    query,
    signal,
    /** Show an error; one that the key is to blame for leads to the form. */
    fail(problem, place = root) {
      if (signal.aborted || problem.name === "AbortError") return;
      if (problem.locked) askForKey(problem.message);
      else fill(place, h("p", { class: "banner bad", role: "alert" }, problem.message));
    },
    /** Call `work` now and again `seconds` after it has ended, while the page is shown and the tab is visible. */
    async every(seconds, work) {
      while (!signal.aborted) {
        if (!document.hidden) await work().catch((problem) => this.fail(problem, this.trouble));
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
      }
    },
  };
}

async function show(moved) {
  leaving.abort();
  leaving = new AbortController();
  const [path, text] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/").map(decodeURIComponent);
  const page = PAGES.find((each) => each.path === name) ?? PAGES[0];
  for (const link of nav.querySelectorAll("a")) {
    if (link.dataset.path === page.path) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave.hidden = key.get() === null;
  const one = id !== undefined && page.one !== undefined;
  const heading = one ? `${page.title.slice(0, -1)} ${id}` : page.title;
  document.title = `${heading} · ASMG console`;
  const root = h("div", { class: "page" });
  const trouble = h("div", {});
  fill(main, h("h1", { tabindex: -1 }, heading), trouble, root);
  if (moved) main.firstElementChild.focus({ preventScroll: true });
  scrollTo(0, 0);
  const { signal } = leaving;
  const context = { ...contextOf(root, id, new URLSearchParams(text), signal), trouble };
  try {
    const module = await (one ? page.one() : page.load());
    if (!signal.aborted) await module.show(context);
  } catch (problem) {
    context.fail(problem);
  }
}

function askForKey(reason) {
  leaving.abort();
  leaving = new AbortController();
  leave.hidden = true;
  document.title = "Key · ASMG console";
  const input = h("input", { type: "password", name: "key", required: true, autocomplete: "off", spellcheck: "false" });
  const fault = h("p", { class: "banner warn", role: "alert" }, reason);
  const form = h(
    "form",
    {
      class: "panel narrow",
      onsubmit: async (event) => {
        event.preventDefault();
        const before = key.get();
        key.set(input.value.trim());
        try {
          await get("admin/overview");
          show(true);
        } catch (problem) {
          if (problem.locked) {
            if (before === null) key.clear();
            else key.set(before);
            fault.textContent = problem.message;
            input.select();
          } else show(true);
        }
      },
    },
    h("p", {}, "The console needs an API key with the scope admin. ", h("code", {}, "asmg keys create NAME --scope admin,predict"), " makes one that can also try predictions."),
    fault,
    field("API key", input, "It stays in this tab, and is gone when the tab is closed."),
    h("div", { class: "buttons" }, h("button", { class: "primary", type: "submit" }, "Open the console"), key.get() && h("button", { type: "button", onclick: () => show(true) }, "Go on with the present key")),
  );
  fill(main, h("h1", { tabindex: -1 }, "Key"), form);
  input.focus();
}

show(false);
