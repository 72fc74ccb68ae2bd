// What is wrong now, and what was.

import { acknowledge } from "./actions.js";
import { badge, button, h, link, table } from "./dom.js";
import { pairs, time, version } from "./format.js";

const words = (alert) => [alert.message, Object.keys(alert.numbers ?? {}).length > 0 && h("details", { "data-focus": `alert ${alert.number}` }, h("summary", { "data-focus": `numbers ${alert.number}` }, "numbers"), pairs(alert.numbers))];
const about = (alert) => [alert.period && link(`#/periods/${alert.period}`, `period ${alert.period}`), alert.period && alert.version !== null && ", ", alert.version !== null && version(alert.version)];
const severity = (alert) => badge(alert.severity, alert.severity === "warning" ? "warn" : "bad");

/** Alerts that are open. */
export function openAlerts(alerts, refresh) {
  return table({
    caption: "Open alerts",
    columns: [{ label: "what" }, { label: "severity" }, { label: "message", wide: true }, { label: "about" }, { label: "since" }, { label: "seen by" }, { label: "actions", hidden: true }],
    rows: alerts.map((alert) => [
      alert.kind.replaceAll("_", " "),
      severity(alert),
      words(alert),
      about(alert),
      time(alert.opened_at),
      alert.acknowledged_by ?? "nobody",
      button("Seen…", async () => (await acknowledge(alert)) && refresh(), { "data-focus": `seen ${alert.number}`, "aria-label": `Seen: alert ${alert.number}` }),
    ]),
    empty: "None.",
  });
}

/** Alerts that were closed. */
export function closedAlerts(alerts) {
  return table({
    caption: "Closed alerts, newest first",
    columns: [{ label: "what" }, { label: "severity" }, { label: "message", wide: true }, { label: "about" }, { label: "opened" }, { label: "closed" }, { label: "because", wide: true }],
    rows: alerts.map((alert) => [alert.kind.replaceAll("_", " "), severity(alert), words(alert), about(alert), time(alert.opened_at), time(alert.closed_at), [alert.closed_reason, h("span", { class: "muted" }, ` (${alert.closed_by})`)]]),
    empty: "None yet.",
  });
}
