// Conversations and their images in IndexedDB; in memory, with a notice, where the browser stores nothing.

import { imageIds } from "./conversation.js";

const NAME = "pixtral";
const VERSION = 2; // 1 kept images in a store of another name

/** Storage that is full. */
export class QuotaError extends Error {}

/** Opens the store: the browser's, or one that lasts as long as the page. */
export async function openStore() {
  try {
    return new Store(await opened());
  } catch {
    return new MemoryStore();
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      for (const name of [...request.result.objectStoreNames]) request.result.deleteObjectStore(name);
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("images", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older version"));
  });
}

class Store {
  lasts = true;

  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close();
  }

  /** Every conversation, newest first. */
  async list() {
    const all = await this.#run("readonly", ["conversations"], (t) => t.objectStore("conversations").getAll());
    return all.sort((a, b) => b.updated - a.updated);
  }

  /** Writes a conversation, its new images with it or not at all, and drops images that are no longer in it. */
  async put(conversation, images = [], dropped = []) {
    await this.#run("readwrite", ["conversations", "images"], (t) => {
      for (const id of dropped) t.objectStore("images").delete(id);
      for (const image of images) t.objectStore("images").put({ id: image.id, blob: image.blob });
      return t.objectStore("conversations").put(conversation);
    });
  }

  /** The bytes of an image, or null. */
  async blob(id) {
    return (await this.#run("readonly", ["images"], (t) => t.objectStore("images").get(id)))?.blob ?? null;
  }

  /** Forgets a conversation and its images. */
  async remove(conversation) {
    await this.#run("readwrite", ["conversations", "images"], (t) => {
      for (const id of imageIds(conversation)) t.objectStore("images").delete(id);
      return t.objectStore("conversations").delete(conversation.id);
    });
  }

  #run(mode, names, work) {
    return new Promise((resolve, reject) => {
      const fail = (error) => reject(error?.name === "QuotaExceededError" ? new QuotaError("full") : error);
      try {
        const transaction = this.database.transaction(names, mode);
        const request = work(transaction);
        transaction.oncomplete = () => resolve(request.result);
        transaction.onabort = () => fail(transaction.error ?? request.error);
      } catch (error) {
        fail(error); // the database was closed under us, or could not take the value
      }
    });
  }
}

class MemoryStore {
  lasts = false;
  #conversations = new Map();
  #blobs = new Map();

  async list() {
    return [...this.#conversations.values()].sort((a, b) => b.updated - a.updated);
  }

  async put(conversation, images = [], dropped = []) {
    for (const id of dropped) this.#blobs.delete(id);
    for (const image of images) this.#blobs.set(image.id, image.blob);
    this.#conversations.set(conversation.id, conversation);
  }

  async blob(id) {
    return this.#blobs.get(id) ?? null;
  }

  async remove(conversation) {
    for (const id of imageIds(conversation)) this.#blobs.delete(id);
    this.#conversations.delete(conversation.id);
  }
}
