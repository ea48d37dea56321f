// The stream of one answer, and the errors that can end it.

import { ApiError, chatChunks } from "./api.js";

/**
 * Streams an answer into `answer`; `changed()` is called after each piece. Never throws what a server or a network can
 * cause: that is written into answer.error, as {heading, message, status, retryAfter}.
 */
export async function stream(answer, body, signal, changed) {
  const started = performance.now();
  let first = null;
  let reason = null;
  try {
    for await (const chunk of chatChunks(body, signal)) {
      if (chunk.usage) answer.usage = usageOf(chunk.usage);
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      const piece = choice.delta?.content ?? choice.delta?.refusal ?? "";
      if (piece) {
        first ??= performance.now();
        answer.text += piece;
        changed();
      }
      reason = choice.finish_reason ?? reason;
    }
    if (reason === null)
      throw new ApiError("The connection was closed before the answer was complete.", { status: 200 });
    answer.state = reason === "length" ? "length" : "done";
  } catch (error) {
    if (error.name === "AbortError") answer.state = "stopped";
    else fail(answer, error);
  }
  if (first !== null) {
    answer.timing = { first: (first - started) / 1000, rest: (performance.now() - first) / 1000 };
  }
}

/** Marks an answer as failed. */
export function fail(answer, error) {
  answer.state = "failed";
  answer.error = {
    heading: error.heading ?? "This could not be sent",
    message: error.message,
    status: error.status ?? null,
    retryAfter: error.retryAfter ?? null,
  };
}

function usageOf(usage) {
  return {
    prompt: usage.prompt_tokens,
    completion: usage.completion_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
  };
}
