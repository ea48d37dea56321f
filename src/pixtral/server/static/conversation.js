// A conversation as it is kept, and as it is sent.

import { newId } from "./dom.js";
import { dataUrl, PictureError } from "./pictures.js";
import { requestFields } from "./settings.js";

/** An empty one. */
export function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings, messages: [] };
}

/** What a user says; pictures without their bytes, which the store has. */
export function userMessage(text, pictures) {
  return {
    id: newId(),
    role: "user",
    text,
    pictures: pictures.map(({ blob, ...rest }) => ({ ...rest, size: blob.size })),
  };
}

/** An answer that is about to come: state is "streaming", then "done", "stopped", "length" or "failed". */
export function emptyAnswer() {
  return {
    id: newId(),
    role: "assistant",
    text: "",
    pictures: [],
    state: "streaming",
    error: null,
    usage: null,
    timing: null,
  };
}

/** A title from the first question. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.messages.find((message) => message.role === "user");
  if (!first) return "New conversation";
  const text = first.text.trim().replace(/\s+/g, " ") || first.pictures[0]?.name || "Pictures";
  return text.length > 60 ? `${text.slice(0, 58).trimEnd()}…` : text;
}

/** The ids of all pictures in it. */
export function pictureIds(conversation) {
  return conversation.messages.flatMap((message) => message.pictures.map((picture) => picture.id));
}

/** Tokens of all pictures that were sent. */
export function pictureTokens(messages) {
  return messages.flatMap((message) => message.pictures).reduce((sum, picture) => sum + picture.grid.tokens, 0);
}

/** How many pictures were sent, pages counted; each goes with every question. */
export function pictureCount(messages) {
  return messages.flatMap((message) => message.pictures).reduce((sum, picture) => sum + (picture.pages ?? 1), 0);
}

/** The conversation as text. */
export function asText(conversation) {
  const parts = conversation.messages.map((message) => {
    const pictures = message.pictures.map((picture) => `[${picture.name}]`).join(" ");
    const who = message.role === "user" ? "You" : "Pixtral";
    return `${who}:\n${[pictures, message.text].filter(Boolean).join("\n")}`;
  });
  return parts.join("\n\n") + "\n";
}

/** The body of the request for the next answer. `blobOf` finds the bytes of a picture. */
export async function requestBody(conversation, model, blobOf) {
  const { settings } = conversation;
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const message of conversation.messages) {
    if (message.role === "assistant") {
      if (message.text) messages.push({ role: "assistant", content: message.text });
    } else {
      const parts = await partsOf(message, blobOf);
      // a question without an answer belongs to the next one: roles take turns
      if (messages.at(-1)?.role === "user") messages.at(-1).content.push(...parts);
      else messages.push({ role: "user", content: parts });
    }
  }
  return { model, messages, stream: true, stream_options: { include_usage: true }, ...requestFields(settings) };
}

async function partsOf(message, blobOf) {
  const parts = [];
  for (const picture of message.pictures) {
    const blob = await blobOf(picture.id);
    if (!blob)
      throw new PictureError(
        `The picture “${picture.name}” is no longer in this browser. Edit the question without it.`,
      );
    parts.push({ type: "image_url", image_url: { url: await dataUrl(blob), detail: picture.detail } });
  }
  if (message.text.trim()) parts.push({ type: "text", text: message.text });
  return parts;
}
