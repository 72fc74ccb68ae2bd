// Calls a service with types that were generated from its OpenAPI document. Arguments: its address and an API key.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

declare const process: { argv: string[] };

const [baseUrl, key] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });

function got<T>(answer: { data?: T; error?: components["schemas"]["Problem"] }): T {
  if (answer.data === undefined) throw new Error(answer.error?.detail ?? "no answer");
  return answer.data;
}

const prediction = got(await client.POST("/predict", { body: { user_id: "ann", items: ["shoes", 17] } }));
const scores: number[] = prediction.scores;

const ingested = got(
  await client.POST("/interactions", {
    body: {
      interactions: [
        { event_id: "e1", user_id: "ann", item_id: "shoes", label: 1, timestamp: "2024-05-01T12:00:00Z" },
        { event_id: "e2", user_id: "ann", item_id: 17, label: 0, timestamp: 1714564800000, weight: 2 },
      ],
    },
  }),
);

const closed = got(
  await client.POST("/periods/close", { params: { header: { "idempotency-key": "ts" } }, body: { reason: "noon" } }),
);
const period = got(await client.GET("/periods/{number}", { params: { path: { number: closed.period } } }));
const models = got(await client.GET("/admin/models", { params: { query: { limit: 5 } } }));
const kind: "prior" | "generated" | "incremental" | "previous" | undefined = models.models[0]?.kind;

// What the service would refuse does not compile.
// @ts-expect-error: a question has items
const refused = await client.POST("/predict", { body: { user_id: "ann" } });
// @ts-expect-error: a label is 0 or 1
const event: NonNullable<paths["/interactions"]["post"]["requestBody"]>["content"]["application/json"] = { interactions: [{ event_id: "e", user_id: "u", item_id: "i", label: 2, timestamp: 0 }] };
const problem: string | undefined = refused.error?.errors?.[0]?.field;

console.log(JSON.stringify({ scores, ingested, closed, status: period.status, kind, problem, sent: event.interactions.length }));
