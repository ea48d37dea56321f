// Requests to the server, and its errors. All addresses are relative to the page's own,
// so that a proxy may put it under a path.

import { events } from "./sse.js";
import { apiKey } from "./key.js";

/** An answer of the server that is an error, or no answer at all (status 0). */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }

  /** The heading above the server's message. */
  get heading() {
    if (this.status === 0) return "The server cannot be reached";
    if (this.status === 401 || this.status === 403) return "The server wants a valid API key";
    if (this.status === 413) return "The message is too large";
    if (this.status === 429) return "The server is busy";
    if (this.status === 503) return "The server is not ready";
    if (this.status >= 500) return "The server has failed";
    if (this.status === 200) return "The answer broke off";
    return "The server refused this";
  }
}

/** Limits of the server; see server/page.py. */
export const facts = () => json("page/facts");

/** The models of the server. */
export const models = async () => (await json("v1/models")).data;

/** Patches and tokens of an image of width x height pixels. */
export const grid = (width, height, detail) => json(`page/grid?width=${width}&height=${height}&detail=${detail}`);

/** Patches and tokens of each page of a PDF, given as a data: address. */
export const pages = (url, detail) => json("page/pages", posted({ url, detail }));

/** The chunks of a chat completion as they come. */
export async function* chatChunks(body, signal) {
  const response = await ask("v1/chat/completions", { ...posted(body), signal });
  try {
    for await (const data of events(response.body)) {
      const chunk = JSON.parse(data);
      if (chunk.error) throw fromBody(chunk, response);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection was lost before the answer was complete.", { status: 200 });
  }
}

async function json(path, options) {
  return (await ask(path, options)).json();
}

function posted(body) {
  return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
}

async function ask(path, options = {}) {
  const key = apiKey();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("Check that it is running and that this device can reach it, then try again.");
  }
  if (response.ok) return response;
  let body = null;
  try {
    body = await response.json();
  } catch {
    // a proxy answers in HTML: only the status is usable
  }
  throw fromBody(body, response);
}

function fromBody(body, response) {
  const error = body?.error ?? {};
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const words = typeof error === "string" ? error : error.message;
  return new ApiError(words || `Status ${response.status} ${response.statusText}`.trim(), {
    status: response.status,
    code: error.code ?? null,
    param: error.param ?? null,
    retryAfter,
  });
}
