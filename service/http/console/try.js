// Ask for a prediction. The answers stand side by side, one column for each version that has answered.

import { post } from "./api.js";
import { field, fill, h, panel, table } from "./dom.js";
import { version } from "./format.js";

export async function show(context) {
  const user = h("input", { name: "user", autocomplete: "off", spellcheck: "false" });
  const items = h("textarea", { name: "items", rows: 5, required: true, spellcheck: "false" });
  const more = h("textarea", { name: "context", rows: 2, spellcheck: "false" });
  const other = h("input", { name: "other", inputmode: "numeric", pattern: "[0-9]*", autocomplete: "off" });
  const answers = h("div", { "aria-live": "polite" });
  const form = h(
    "form",
    {
      onsubmit: async (event) => {
        event.preventDefault();
        try {
          const question = questionOf(user.value, items.value, more.value);
          const asked = [question, ...(other.value.trim() ? [{ ...question, model_version: Number(other.value) }] : [])];
          fill(answers, answerPanel(question.items, await Promise.all(asked.map((each) => post("predict", each)))));
        } catch (problem) {
          context.fail(problem, answers);
        }
      },
    },
    field("User", user, "Empty for a visitor without an id."),
    field("Items", items, "One a line, or separated by commas."),
    field("Beside version", other, "Optional: what another version says of the same, side by side."),
    field("Context", more, 'Optional, JSON: {"device": "phone"}'),
    h("div", { class: "buttons" }, h("button", { class: "primary", type: "submit" }, "Predict")),
  );
  fill(context.root, h("div", { class: "split" }, panel("Question", form), answers));
}

/** The body of `POST /predict`. */
export function questionOf(user, items, context) {
  const question = { items: items.split(/[\n,]/).map((item) => item.trim()).filter(Boolean) };
  if (!question.items.length) throw new Error("Name at least one item.");
  if (user.trim()) question.user_id = user.trim();
  if (context.trim()) {
    try {
      question.context = JSON.parse(context);
    } catch {
      throw new Error("The context is no JSON.");
    }
  }
  return question;
}

function answerPanel(items, answers) {
  const [first] = answers;
  const order = items.map((_, n) => n).sort((a, b) => first.scores[b] - first.scores[a]);
  const most = Math.max(...answers.flatMap((answer) => answer.scores));
  const bar = (value) => h("meter", { min: 0, max: most, value, "aria-hidden": "true" });
  const notes = [
    first.cold_user && "The model does not know the user.",
    first.history === "unavailable" && "No server gave the user's history in time; the scores do without it.",
  ].filter(Boolean);
  const between = answers.length > 1 && Math.max(...items.map((_, n) => Math.abs(answers[0].scores[n] - answers[1].scores[n])));
  return panel(
    "Answer",
    h("p", { class: "muted" }, "Click probabilities by ", answers.map((answer, n) => [n ? " and " : "", version(answer.model_version), ` (period ${answer.period})`]), ", best first."),
    answers.length > 1 && h("p", {}, `They differ by up to ${between.toFixed(4)}.`),
    notes.map((text) => h("p", { class: "banner warn" }, text)),
    table({
      compact: true,
      caption: "Click probability of each item",
      columns: [{ label: "item" }, ...answers.map((answer) => ({ label: `v${answer.model_version}`, num: true })), { label: "known" }],
      rows: order.map((n) => [h("code", {}, items[n]), ...answers.map((answer) => [bar(answer.scores[n]), " ", answer.scores[n].toFixed(4)]), first.cold_items.includes(n) ? "no: cold" : "yes"]),
    }),
  );
}
