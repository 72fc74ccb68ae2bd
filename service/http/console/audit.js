// Who did what, when and why.

import { get } from "./api.js";
import { button, field, fill, h, link, panel, table } from "./dom.js";
import { pairs, time } from "./format.js";

const ACTIONS = [
  "acknowledge_alert", "add_webhook", "close_alert", "close_period", "create_key", "delete_webhook", "limit_key", "open_alert", "pin", "promote_canary", "publish", "quarantine",
  "redeliver", "retry_period", "revert_canary", "revoke_key", "rollback", "rotate_webhook_secret", "skip_period", "start_canary", "switch_webhook_off", "switch_webhook_on", "unpin",
];

export async function show(context) {
  const actor = h("input", { name: "actor", value: context.query.get("actor") ?? "", autocomplete: "off" });
  const action = h("input", { name: "action", value: context.query.get("action") ?? "", list: "actions", autocomplete: "off" });
  const rows = h("div", {});
  const more = h("div", { class: "row" });
  const form = h(
    "form",
    {
      class: "row",
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        location.hash = address(actor.value, action.value);
      },
    },
    field("Actor", actor),
    field("Action", action),
    h("datalist", { id: "actions" }, ACTIONS.map((value) => h("option", { value }))),
    h("button", { type: "submit" }, "Filter"),
    (actor.value || action.value) && link("#/audit", "All"),
  );
  fill(context.root, panel("Entries", form, rows, more));
  const entries = [];

  async function load(before) {
    const query = new URLSearchParams({ limit: 50 });
    if (actor.value) query.set("actor", actor.value);
    if (action.value) query.set("action", action.value);
    if (before) query.set("before", before);
    const page = await get(`admin/audit?${query}`, context.signal);
    entries.push(...page.entries);
    fill(rows, entryTable(entries));
    fill(more, page.next !== null && button("Older", () => load(page.next).catch((problem) => context.fail(problem)), { "data-focus": "older" }));
  }
  await load();
}

function address(actor, action) {
  const query = new URLSearchParams();
  if (actor) query.set("actor", actor);
  if (action) query.set("action", action);
  return query.size ? `#/audit?${query}` : "#/audit";
}

function entryTable(entries) {
  return table({
    caption: "Audit, newest first",
    columns: [{ label: "when" }, { label: "who" }, { label: "what" }, { label: "details", wide: true }, { label: "why", wide: true }],
    rows: entries.map((entry) => [time(entry.at), link(address(entry.actor, ""), entry.actor), link(address("", entry.action), entry.action), h("span", { title: entry.request_id ? `request ${entry.request_id}` : null }, pairs(entry.detail)), entry.reason ?? ""]),
    empty: "No entry.",
  });
}
