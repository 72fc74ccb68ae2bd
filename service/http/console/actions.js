// What an operator can do, each with a dialog that says what will happen. All return whether it was done.

import { post } from "./api.js";
import { ask, button, field, h, reasonField, toast } from "./dom.js";

const choice = (name, value, label, text, checked) => {
  const id = `choice-${name}-${value}`;
  const input = h("input", { type: "radio", name, value, id, checked, "aria-describedby": `${id}-text` });
  return h("div", { class: "choice" }, input, h("label", { for: id }, label), h("p", { id: `${id}-text` }, text));
};

/** Serve the version `to` in place of `from`: back, or forward again. The next update would continue from `head`. */
export async function serve(from, to, head) {
  const way = to < from ? "back" : "forward";
  const lost = to < head ? `The next update continues from v${to}: what v${to + 1}${head > to + 1 ? ` to v${head}` : ""} learned is no longer part of the sequence. Versions stay in the list, and can be served.` : `The next update continues from v${to}.`;
  const done = await ask({
    title: `Roll ${way} to v${to}`,
    body: [
      h(
        "ul",
        { class: "plain" },
        h("li", {}, `The artifacts of v${to} are read and compared with their digests first; nothing changes where one is damaged.`),
        h("li", {}, `Then all api processes load v${to} and switch from v${from} at one moment. No request fails meanwhile.`),
        h("li", {}, "A canary that runs ends with it."),
        h("li", {}, `v${from} is kept, so you can roll ${way === "back" ? "forward" : "back"} again.`),
      ),
      h(
        "fieldset",
        {},
        h("legend", {}, "The sequence that the next update learns from"),
        choice("sequence", "keep", "keep", `The next update continues from v${head}, the newest training state. Its model takes over when it is published.`, true),
        choice("sequence", "excise", "excise", lost),
      ),
      reasonField(),
    ],
    action: `Serve v${to}`,
    danger: way === "back",
    submit: (data) => post("admin/rollback", { to_version: to, sequence: data.get("sequence"), reason: data.get("reason") }),
  });
  if (done) toast(`v${done.to_version} is served in place of v${done.from_version}.`);
  return Boolean(done);
}

export async function pin(version, pinned) {
  const done = await ask({
    title: pinned ? `Pin v${version}` : `Unpin v${version}`,
    body: [
      h("p", {}, pinned ? `v${version} keeps its files however old it gets, so that one can always go back to it.` : `v${version} loses its files after the next update, where it is too old by then.`),
      reasonField(),
    ],
    action: pinned ? "Pin" : "Unpin",
    submit: (data) => post(`admin/models/${version}/${pinned ? "pin" : "unpin"}`, { reason: data.get("reason") }),
  });
  if (done) toast(`v${version} is ${pinned ? "pinned" : "not pinned any more"}.`);
  return Boolean(done);
}

export async function close(number, events) {
  const done = await ask({
    title: `Close period ${number}`,
    body: [
      h(
        "ul",
        { class: "plain" },
        h("li", {}, `The log of period ${number}, ${events.toLocaleString("en")} interactions so far, is sealed for ever, and period ${number + 1} is open.`),
        h("li", {}, "The worker scores the models on it, learns it, and publishes a version if the gate lets one through."),
      ),
      reasonField(false),
    ],
    action: `Close period ${number}`,
    submit: (data) => post("periods/close", { expected_period: number, ...(data.get("reason") && { reason: data.get("reason") }) }),
  });
  if (done) toast(`Period ${done.period} is closed.`);
  return Boolean(done);
}

export async function retry(number) {
  const done = await ask({
    title: `Retry period ${number}`,
    body: [h("p", {}, `The worker learns period ${number} from the beginning, with all attempts. Periods learned meanwhile stay learned; this one comes after them.`), reasonField()],
    action: "Retry",
    submit: (data) => post(`periods/${number}/retry`, { reason: data.get("reason") }),
  });
  if (done) toast(`Period ${number} waits for its update again.`);
  return Boolean(done);
}

export async function skip(number) {
  const done = await ask({
    title: `Skip period ${number}`,
    body: [h("p", {}, `No model will ever learn period ${number}. That cannot be undone. What users clicked in it stays in their histories.`), reasonField()],
    action: "Skip for ever",
    danger: true,
    submit: (data) => post(`periods/${number}/skip`, { reason: data.get("reason") }),
  });
  if (done) toast(`Period ${number} is skipped.`);
  return Boolean(done);
}

export async function acknowledge(alert) {
  const done = await ask({
    title: "Say that it was seen",
    body: [
      h("p", {}, alert.message),
      h("div", { class: "choice" }, h("input", { type: "checkbox", name: "close", id: "choice-close" }), h("label", { for: "choice-close" }, "Close it too"), h("p", {}, "It opens again when it is found to be wrong again. Otherwise it stays open until it is right.")),
      reasonField(),
    ],
    action: "Seen",
    submit: (data) => post(`admin/alerts/${alert.number}/acknowledge`, { reason: data.get("reason"), close: data.get("close") !== null }),
  });
  return Boolean(done);
}

/** Let the canary answer all users, or none. */
export async function decide(canary, promote) {
  const { version, champion_version: champion } = canary;
  const done = await ask({
    title: promote ? `Promote v${version} now` : `Take v${version} back`,
    body: [
      h(
        "ul",
        { class: "plain" },
        promote ? h("li", {}, `v${version} answers all users from now on, in place of v${champion}; nobody waits for more evidence.`) : h("li", {}, `v${champion} answers all users again. v${version} stays in the list, and can be served by a rollback.`),
        h("li", {}, promote ? `v${champion} is kept, so you can roll back to it.` : "The sequence that the next update learns from stays as it is; the next version is the next canary."),
        h("li", {}, "The api processes switch together. No request fails meanwhile."),
      ),
      reasonField(),
    ],
    action: promote ? `Promote v${version}` : `Take v${version} back`,
    danger: !promote,
    submit: (data) => post(`admin/canary/${promote ? "promote" : "revert"}`, { version, reason: data.get("reason") }),
  });
  if (done) toast(promote ? `v${version} answers all users.` : `v${champion} answers all users again.`);
  return Boolean(done);
}

/** Show a secret, which nobody can look up later, until it is copied. */
export async function showOnce(title, label, secret, ...texts) {
  const shown = h("input", { readonly: true, value: secret, class: "secret", spellcheck: "false" });
  const copy = button("Copy", async () => {
    shown.select();
    await navigator.clipboard?.writeText(secret).then(() => toast("Copied."), () => toast("Copy it with the keyboard: it is selected.", "warn"));
  });
  await ask({ title, body: [h("p", {}, texts[0]), field(label, shown), copy, texts.slice(1).map((text) => text && h("p", {}, text))], action: "I have it", cancel: null, submit: () => {} });
}
