// Calls of the API. The key is in sessionStorage: it is gone with the tab, and no other site can make a browser send it.

const ROOT = new URL("../", import.meta.url); // the service, whatever path prefix a proxy has put before it
const KEY = "asmg.key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

/** An error of the API, from its problem document. */
export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || document.title || `status ${status}`);
    this.status = status;
    this.document = document;
  }

  get locked() {
    return this.status === 401 || this.status === 403;
  }
}

async function send(method, path, { body, signal, accept = "application/json" } = {}) {
  const headers = { Accept: accept };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, ROOT), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "omit",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service does not answer." });
  }
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
  return response;
}

/** The document that a call answers; null where it answers none. */
export async function call(method, path, body, signal) {
  const response = await send(method, path, { body, signal });
  return response.status === 204 ? null : response.json();
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const post = (path, body) => call("POST", path, body);

/** The document, or null where this release has no such call. */
export async function getIfThere(path, signal) {
  try {
    return await get(path, signal);
  } catch (problem) {
    if (problem.status === 404) return null;
    throw problem;
  }
}

/** All rows of a list that comes in pages, newest first, `most` of them. */
export async function getAll(path, name, most, signal) {
  const rows = [];
  for (let before = null; rows.length < most; ) {
    const limit = Math.min(200, most - rows.length);
    const page = await get(`${path}?limit=${limit}${before === null ? "" : `&before=${before}`}`, signal);
    rows.push(...page[name]);
    if (page.next === null) break;
    before = page.next;
  }
  return rows;
}

/**
 * The documents of a period as it changes, until its update has ended. An EventSource could not send the key, so the
 * stream of events is read here.
 */
export async function* periodEvents(number, signal) {
  const response = await send("GET", `periods/${number}/events`, { signal, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value.replaceAll("\r\n", "\n");
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const event = lines.find((line) => line.startsWith("event:"))?.slice(6).trim();
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (event === "end") return;
      if (event === "status") yield JSON.parse(data);
    }
  }
}
