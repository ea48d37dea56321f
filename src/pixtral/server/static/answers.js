// The running answers, at most one in each conversation; they go on while another conversation is shown.

import { ApiError } from "./api.js";
import { fail, stream } from "./answering.js";
import { requestBody } from "./conversation.js";
import { bytes } from "./dom.js";

const SAVE_EVERY = 1500; // milliseconds

export class Answers {
  #running = new Map(); // conversation id -> {conversation, controller}

  /** `model()` names the model; `watch` has maxBytes, changed(conversation, answer) and ended(conversation, answer). */
  constructor(library, model, watch) {
    Object.assign(this, { library, model, watch });
  }

  /** The ids of conversations that are being answered. */
  get busy() {
    return new Set(this.#running.keys());
  }

  /** Stops the answer of a conversation; false if there is none. */
  stop(conversation) {
    const run = this.#running.get(conversation.id);
    run?.controller.abort();
    return run !== undefined;
  }

  /** Saves what has been received, before the page is closed. */
  saveAll() {
    for (const { conversation } of this.#running.values()) this.library.save(conversation);
  }

  /** Answers the last question of a conversation into its last message. */
  async start(conversation, answer, images, dropped) {
    const controller = new AbortController();
    this.#running.set(conversation.id, { conversation, controller });
    const saved = this.library.save(conversation, images, dropped);
    let frame = 0;
    let keptAt = performance.now();
    const changed = () => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(() => this.watch.changed(conversation, answer));
      if (performance.now() - keptAt > SAVE_EVERY) {
        keptAt = performance.now();
        this.library.save(conversation);
      }
    };
    try {
      const body = await this.#body(conversation);
      await stream(answer, body, controller.signal, changed);
    } catch (error) {
      fail(answer, error); // an image that cannot be sent
    }
    cancelAnimationFrame(frame);
    await saved;
    this.#running.delete(conversation.id);
    if (this.library.conversations.includes(conversation)) {
      conversation.updated = Date.now();
      await this.library.save(conversation);
    }
    this.watch.ended(conversation, answer);
  }

  async #body(conversation) {
    if (this.model() === null) throw new ApiError("There is no connection yet. Reload the page, or try again.");
    const body = await requestBody(conversation, this.model(), (id) => this.library.blob(id));
    const size = JSON.stringify(body).length;
    const { maxBytes } = this.watch;
    if (size > maxBytes) {
      throw new ApiError(
        `With its images it has ${bytes(size)}; the server takes ${bytes(maxBytes)}. Use fewer or smaller images.`,
        { status: 413 },
      );
    }
    return body;
  }
}
