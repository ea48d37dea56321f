// A conversation: its stored form, and the request made of it.

import { newId } from "./dom.js";
import { dataUrl, ImageError } from "./images.js";
import { requestFields } from "./settings.js";

/** An empty conversation. */
export function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings, messages: [] };
}

/** A message of the user; images are without their bytes, which the store has. */
export function userMessage(text, images) {
  return {
    id: newId(),
    role: "user",
    text,
    images: images.map(({ blob, ...rest }) => ({ ...rest, size: blob.size })),
  };
}

/** An answer before its first token: state is "streaming", then "done", "stopped", "length" or "failed". */
export function emptyAnswer() {
  return {
    id: newId(),
    role: "assistant",
    text: "",
    images: [],
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
  const text = first.text.trim().replace(/\s+/g, " ") || first.images[0]?.name || "Images";
  return text.length > 60 ? `${text.slice(0, 58).trimEnd()}…` : text;
}

/** The ids of all images of a conversation. */
export function imageIds(conversation) {
  return conversation.messages.flatMap((message) => message.images.map((image) => image.id));
}

/** Tokens of all images that were sent. */
export function imageTokens(messages) {
  return messages.flatMap((message) => message.images).reduce((sum, image) => sum + image.grid.tokens, 0);
}

/** How many images were sent, pages counted; each goes with every question. */
export function imageCount(messages) {
  return messages.flatMap((message) => message.images).reduce((sum, image) => sum + (image.pages ?? 1), 0);
}

/** The conversation as text. */
export function asText(conversation) {
  const parts = conversation.messages.map((message) => {
    const images = message.images.map((image) => `[${image.name}]`).join(" ");
    const who = message.role === "user" ? "You" : "Pixtral";
    return `${who}:\n${[images, message.text].filter(Boolean).join("\n")}`;
  });
  return parts.join("\n\n") + "\n";
}

/** The body of the request for the next answer. `blobOf` finds the bytes of an image. */
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
  for (const image of message.images) {
    const blob = await blobOf(image.id);
    if (!blob)
      throw new ImageError(
        `The image “${image.name}” is no longer in this browser. Edit the question without it.`,
      );
    parts.push({ type: "image_url", image_url: { url: await dataUrl(blob), detail: image.detail } });
  }
  if (message.text.trim()) parts.push({ type: "text", text: message.text });
  return parts;
}
