// Who is told of events, and whether they have heard it.

import { showOnce } from "./actions.js";
import { call, get, post } from "./api.js";
import { ask, badge, button, field, fill, h, panel, reasonField, table, toast } from "./dom.js";
import { time } from "./format.js";

const EVERY_SECONDS = 5;
const STATUSES = { delivered: "ok", waiting: "busy", failed: "bad" };
const ONCE = "It is shown now and never again. The receiver checks with it that a message is from here.";

export async function show(context) {
  const rows = h("div", {});
  const deliveries = h("div", {});
  const more = h("div", { class: "row" });
  let before;
  let told = [];
  fill(
    context.root,
    h("div", { class: "row" }, button("Add a webhook…", () => done(add()), { class: "primary", "data-focus": "add" })),
    panel("Webhooks", rows),
    panel("Deliveries", deliveries, more),
  );

  async function done(work) {
    try {
      if (await work) await refresh();
    } catch (problem) {
      context.fail(problem, context.trouble);
    }
  }

  async function refresh() {
    const [found, page] = await Promise.all([get("admin/webhooks", context.signal), get("admin/webhooks/deliveries?limit=20", context.signal)]);
    fill(context.trouble);
    const text = JSON.stringify([found, page]);
    if (text === before) return;
    before = text;
    fill(rows, webhookTable(found.webhooks, done));
    told = page.deliveries;
    showDeliveries(found.webhooks, page);
  }

  function showDeliveries(webhooks, page) {
    const older = async () => {
      const next = await get(`admin/webhooks/deliveries?limit=20&before=${page.next}`, context.signal);
      told = [...told, ...next.deliveries];
      showDeliveries(webhooks, next);
    };
    fill(deliveries, deliveryTable(told, webhooks, done));
    fill(more, page.next !== null && button("Older", () => older().catch((problem) => context.fail(problem, context.trouble)), { "data-focus": "older" }));
  }
  await context.every(EVERY_SECONDS, refresh);
}

function webhookTable(webhooks, done) {
  return table({
    caption: "Webhooks",
    columns: [{ label: "number" }, { label: "address", wide: true }, { label: "events", wide: true }, { label: "state" }, { label: "made", wide: true }, { label: "actions", hidden: true }],
    rows: webhooks.map((each) => {
      const { number, off_at: off } = each;
      return [
        String(number),
        h("code", {}, each.url),
        each.events?.map((name) => badge(name)) ?? "all",
        off ? [badge("off", "warn"), " ", each.off_reason] : badge("on", "ok"),
        [time(each.created_at), ` by ${each.created_by}`],
        h(
          "div",
          { class: "row" },
          button(off ? "Switch on…" : "Switch off…", () => done(turn(each, Boolean(off))), { "data-focus": `switch ${number}`, "aria-label": `Switch webhook ${number} ${off ? "on" : "off"}` }),
          button("New secret…", () => done(rotate(each)), { "data-focus": `secret ${number}`, "aria-label": `New secret of webhook ${number}` }),
          button("Remove…", () => done(remove(each)), { "data-focus": `remove ${number}`, "aria-label": `Remove webhook ${number}` }),
        ),
      ];
    }),
    empty: "Nobody is told.",
  });
}

function deliveryTable(deliveries, webhooks, done) {
  const byNumber = new Map(webhooks.map((each) => [each.number, each]));
  return table({
    caption: "Deliveries, newest first",
    columns: [{ label: "happened" }, { label: "event" }, { label: "to" }, { label: "status" }, { label: "attempts", num: true }, { label: "next attempt" }, { label: "trouble", wide: true }, { label: "actions", hidden: true }],
    rows: deliveries.map((each) => [
      time(each.occurred_at),
      each.event,
      h("span", { title: byNumber.get(each.webhook)?.url }, `webhook ${each.webhook}`),
      badge(each.status, STATUSES[each.status]),
      String(each.attempts),
      each.due_at && time(each.due_at),
      each.status !== "delivered" && [each.answer && `status ${each.answer} `, each.error],
      byNumber.get(each.webhook)?.off_at === null && button("Send again…", () => done(sendAgain(each)), { "data-focus": `again ${each.number}`, "aria-label": `Send delivery ${each.number} again` }),
    ]),
    empty: "None yet.",
  });
}

async function add() {
  const { events } = await get("admin/webhooks");
  const made = await ask({
    title: "Add a webhook",
    body: [
      field("Address", h("input", { name: "url", type: "url", required: true, maxlength: 2000, autocomplete: "off" }), "It is told of what happens from now on, by signed messages, as soon as the worker runs."),
      h("fieldset", {}, h("legend", {}, "Events"), h("p", { class: "hint" }, "None chosen: all, those of later releases too."), events.map((name) => h("div", { class: "choice" }, h("input", { type: "checkbox", name: "event", value: name, id: `event-${name}` }), h("label", { for: `event-${name}` }, name)))),
    ],
    action: "Add",
    submit: (data) => post("admin/webhooks", { url: data.get("url"), events: data.getAll("event").length ? data.getAll("event") : null }),
  });
  if (made) await showOnce("The secret of the webhook", "Secret", made.secret, ONCE);
  return Boolean(made);
}

async function turn(each, on) {
  const done = await ask({
    title: `Switch webhook ${each.number} ${on ? "on" : "off"}`,
    body: [h("p", {}, h("code", {}, each.url)), h("p", {}, on ? "It is told of what happens from now on. What happened while it was off is not sent." : "It is told of nothing more, and what waits for it is given up."), reasonField()],
    action: on ? "Switch on" : "Switch off",
    danger: !on,
    submit: (data) => post(`admin/webhooks/${each.number}/${on ? "on" : "off"}`, { reason: data.get("reason") }),
  });
  if (done) toast(`Webhook ${each.number} is ${on ? "on" : "off"}.`);
  return Boolean(done);
}

async function rotate(each) {
  const hours = h("input", { name: "hours", type: "number", min: 0, max: 720, step: "any", value: 24, required: true });
  const made = await ask({
    title: `A new secret for webhook ${each.number}`,
    body: [h("p", {}, h("code", {}, each.url)), field("Hours with both", hours, "For so long messages are signed with the old secret too.")],
    action: "Make a new secret",
    submit: (data) => post(`admin/webhooks/${each.number}/rotate`, { overlap_hours: Number(data.get("hours")) }),
  });
  if (made) await showOnce("The new secret", "Secret", made.secret, ONCE);
  return Boolean(made);
}

async function remove(each) {
  let removed = false;
  await ask({
    title: `Remove webhook ${each.number}`,
    body: [h("p", {}, h("code", {}, each.url)), h("p", {}, "It is gone with the list of what it was told, and what waits for it is not sent. That cannot be undone.")],
    action: "Remove for ever",
    danger: true,
    submit: async () => {
      await call("DELETE", `admin/webhooks/${each.number}`);
      removed = true;
    },
  });
  if (removed) toast(`Webhook ${each.number} is removed.`);
  return removed;
}

async function sendAgain(each) {
  const done = await ask({
    title: `Send delivery ${each.number} again`,
    body: [h("p", {}, `${each.event} is sent again from now on, with all attempts, under the id that it had: ${each.message}. A receiver that has seen this id ignores it.`)],
    action: "Send again",
    submit: () => post(`admin/webhooks/deliveries/${each.number}/redeliver`),
  });
  if (done) toast("It is on its way.");
  return Boolean(done);
}
