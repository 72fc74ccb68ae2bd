// API keys: who may call what.

import { showOnce } from "./actions.js";
import { get, key, post } from "./api.js";
import { ask, badge, button, field, fill, h, panel, reasonField, table, toast } from "./dom.js";
import { time } from "./format.js";

const SCOPES = { predict: "ask for predictions", ingest: "send events, users and items; read periods", admin: "everything that this console does" };

export async function show(context) {
  const rows = h("div", {});
  const refresh = async () => {
    const { keys } = await get("admin/keys", context.signal);
    fill(rows, keyTable(keys.reverse(), refresh));
  };
  const open = key.get() === null;
  fill(
    context.root,
    open && h("p", { class: "banner warn" }, "There is no key yet, so only this host may call. From the first key on every call has to show one."),
    h("div", { class: "row" }, button("Create a key…", () => create(open, refresh).catch((problem) => context.fail(problem)), { class: "primary", "data-focus": "create" })),
    panel("Keys", rows),
  );
  await refresh();
}

function keyTable(keys, refresh) {
  const done = async (work) => (await work) && refresh();
  return table({
    caption: "API keys, newest first",
    columns: [{ label: "name" }, { label: "id" }, { label: "scopes" }, { label: "limit" }, { label: "made" }, { label: "expires" }, { label: "state" }, { label: "actions", hidden: true }],
    rows: keys.map((each) => ({
      class: each.valid ? null : "past",
      cells: [
        each.name,
        h("code", {}, each.key_id),
        each.scopes.join(", "),
        each.rate_limit === null ? "default" : each.rate_limit === 0 ? "none" : `${each.rate_limit}/s`,
        time(each.created_at),
        each.expires_at ? time(each.expires_at) : "never",
        each.valid ? badge("valid", "ok") : each.revoked_at ? badge("revoked") : badge("expired"),
        each.valid && h("div", { class: "row" }, button("Limit…", () => done(limit(each)), { "data-focus": `limit ${each.key_id}`, "aria-label": `Limit ${each.name}` }), button("Revoke…", () => done(revoke(each)), { "data-focus": `revoke ${each.key_id}`, "aria-label": `Revoke ${each.name}` })),
      ],
    })),
    empty: "There is none yet.",
  });
}

const number = (text) => (text.trim() === "" ? null : Number(text));
const rateField = (value) => field("Requests per second", h("input", { name: "rate", type: "number", min: 0, step: "any", value }), "0 for no limit; empty for ASMG_RATE_LIMIT.");

async function create(open, refresh) {
  const days = h("input", { name: "days", type: "number", min: 1, max: 3650, step: 1 });
  const made = await ask({
    title: "Create a key",
    body: [
      field("Name", h("input", { name: "name", required: true, maxlength: 100, autocomplete: "off" }), "What it is for, or whose it is; the audit names it."),
      h("fieldset", {}, h("legend", {}, "Scopes"), Object.entries(SCOPES).map(([name, text]) => h("div", { class: "choice" }, h("input", { type: "checkbox", name: "scope", value: name, id: `scope-${name}`, checked: open, "aria-describedby": `scope-${name}-text` }), h("label", { for: `scope-${name}` }, name), h("p", { id: `scope-${name}-text` }, text)))),
      field("Expires in days", days, "Empty for never."),
      rateField(""),
      reasonField(false),
    ],
    action: "Create",
    submit: (data) => {
      if (!data.getAll("scope").length) throw new Error("Choose at least one scope.");
      return post("admin/keys", {
        name: data.get("name"),
        scopes: data.getAll("scope"),
        rate_limit: number(data.get("rate")),
        expires_at: data.get("days") ? new Date(Date.now() + data.get("days") * 86400e3).toISOString() : null,
        ...(data.get("reason") && { reason: data.get("reason") }),
      }).then((answer) => ({ ...answer, scopes: data.getAll("scope") }));
    },
  });
  if (!made) return;
  await showOnce("The new key", "Key", made.key, "It is shown now and never again: the service stores only its hash.", open && "This tab uses it from now on.");
  if (open && made.scopes.includes("admin")) key.set(made.key);
  if (open) location.hash = `#/keys?${made.key_id}`;
  else await refresh();
}

async function revoke(each) {
  const done = await ask({
    title: `Revoke ${each.name}`,
    body: [h("p", {}, `Calls with the key ${each.key_id} get 401 a second later, for ever.`), key.get()?.includes(each.key_id) && h("p", { class: "banner warn" }, "This console uses it: you will need another key."), reasonField()],
    action: "Revoke for ever",
    danger: true,
    submit: (data) => post(`admin/keys/${each.key_id}/revoke`, { reason: data.get("reason") }),
  });
  if (done) toast(`${each.name} is revoked.`);
  return Boolean(done);
}

async function limit(each) {
  const done = await ask({
    title: `Limit of ${each.name}`,
    body: [rateField(each.rate_limit ?? ""), reasonField()],
    action: "Change the limit",
    submit: (data) => post(`admin/keys/${each.key_id}/limit`, { rate_limit: number(data.get("rate")), reason: data.get("reason") }),
  });
  if (done) toast(`${each.name} has its new limit.`);
  return Boolean(done);
}
