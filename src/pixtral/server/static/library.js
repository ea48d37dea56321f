// All conversations of this browser, and errors of its storage.

import { imageIds } from "./conversation.js";
import { notify } from "./notices.js";
import { openStore, QuotaError } from "./store.js";

export class Library {
  conversations = [];
  #gone = new Set(); // ids of those that were deleted; an answer to them may still be running
  #held = new Map(); // bytes of images that the store does not have
  #channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("pixtral") : null;

  /** Opens what the browser has; `changed` is called when another tab has written. */
  static async open(changed) {
    const library = new Library();
    library.store = await openStore();
    await library.reload();
    if (library.#channel) library.#channel.onmessage = changed;
    if (!library.store.lasts) {
      notify("This browser keeps nothing for this page: conversations are gone when it is closed.", {
        name: "storage",
      });
    }
    return library;
  }

  /** Reads the list again; conversations in `kept` stay the objects that they are. */
  async reload(kept = new Set()) {
    const mine = new Map(this.conversations.filter(({ id }) => kept.has(id)).map((c) => [c.id, c]));
    const stored = (await this.store.list()).map(
      (conversation) => mine.get(conversation.id) ?? interrupted(conversation),
    );
    this.conversations = [...[...mine.values()].filter((c) => !stored.includes(c)), ...stored];
  }

  find(id) {
    return this.conversations.find((conversation) => conversation.id === id) ?? null;
  }

  /** Saves a conversation and new images. A full store is reported once; the page goes on from memory. */
  async save(conversation, images = [], dropped = []) {
    if (this.#gone.has(conversation.id)) return;
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.conversations.sort((a, b) => b.updated - a.updated);
    for (const image of images) this.#held.set(image.id, image.blob);
    const unkept = imageIds(conversation).filter((id) => this.#held.has(id));
    try {
      await this.store.put(
        conversation,
        unkept.map((id) => ({ id, blob: this.#held.get(id) })),
        dropped,
      );
      for (const id of unkept) this.#held.delete(id);
      this.#channel?.postMessage(conversation.id);
    } catch (error) {
      const why =
        error instanceof QuotaError
          ? "The browser’s storage for this page is full"
          : "The browser could not store this";
      notify(`${why}: the newest messages are kept only until this tab closes. Delete conversations to make room.`, {
        kind: "error",
        name: "storage",
      });
    }
  }

  /** The bytes of an image, or null. */
  async blob(id) {
    return this.#held.get(id) ?? (await this.store.blob(id).catch(() => null));
  }

  /** Deletes a conversation; returns a function that restores it. */
  async remove(conversation) {
    const ids = imageIds(conversation);
    const images = await Promise.all(ids.map(async (id) => ({ id, blob: await this.blob(id) })));
    this.#gone.add(conversation.id);
    this.conversations = this.conversations.filter((other) => other !== conversation);
    await this.store
      .remove(conversation)
      .catch(() => notify("The browser could not delete this.", { kind: "error", seconds: 8 }));
    for (const id of ids) this.#held.delete(id);
    this.#channel?.postMessage(conversation.id);
    const kept = images.filter(({ blob }) => blob);
    return () => {
      this.#gone.delete(conversation.id);
      return this.save(conversation, kept);
    };
  }
}

/** Marks answers that were running when the page was closed as stopped. */
function interrupted(conversation) {
  for (const message of conversation.messages) {
    if (message.state === "streaming") message.state = "stopped";
  }
  return conversation;
}
