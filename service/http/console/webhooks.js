// Who is told of events, and whether they have heard it.

import { getIfThere } from "./api.js";
import { badge, fill, h, panel, table } from "./dom.js";
import { time } from "./format.js";

const STATUSES = { delivered: "ok", waiting: "busy", failed: "bad" };

export async function show(context) {
  const [found, told] = await Promise.all([getIfThere("admin/webhooks", context.signal), getIfThere("admin/webhooks/deliveries?limit=50", context.signal)]);
  if (found === null) {
    fill(context.root, panel("Webhooks", h("p", { class: "muted" }, "This service has no webhooks.")));
    return;
  }
  const urls = new Map(found.webhooks.map((each) => [each.number, each.url]));
  fill(
    context.root,
    panel(
      "Webhooks",
      table({
        caption: "Webhooks",
        columns: [{ label: "number" }, { label: "address", wide: true }, { label: "events" }, { label: "made" }, { label: "by" }, { label: "state" }],
        rows: found.webhooks.map((each) => [String(each.number), h("code", {}, each.url), each.events?.join(", ") ?? "all", time(each.created_at), each.created_by, each.off_at ? [badge("off", "warn"), " ", each.off_reason] : badge("on", "ok")]),
        empty: "Nobody is told.",
      }),
    ),
    panel(
      "Newest deliveries",
      table({
        caption: "Deliveries, newest first",
        columns: [{ label: "happened" }, { label: "event" }, { label: "to", wide: true }, { label: "status" }, { label: "attempts", num: true }, { label: "next attempt" }, { label: "trouble", wide: true }],
        rows: (told?.deliveries ?? []).map((each) => [time(each.occurred_at), each.event, h("code", {}, urls.get(each.webhook) ?? `webhook ${each.webhook}`), badge(each.status, STATUSES[each.status]), String(each.attempts), time(each.due_at), [each.answer && `status ${each.answer} `, each.error]]),
        empty: "None yet.",
      }),
    ),
  );
}
