// The composer: text, images by button, paste and drop, their tokens, send and stop.

import { imageCount, imageTokens } from "./conversation.js";
import { announce, byId, count, h, plural } from "./dom.js";
import { gridded, sheet } from "./grid.js";
import { iconButton } from "./icons.js";
import { listenForFiles } from "./intake.js";
import { notify } from "./notices.js";
import { describe, imageOf, remeasured, sentAs } from "./images.js";
import { view } from "./viewer.js";

const TILE_HEIGHT = 104; // CSS pixels
const TILE_WIDTH = 220;

export class Composer {
  #images = [];
  #pending = 0;
  #editing = null;

  /** `actions`: send(text, images, editing), stop(), detail(), editLast(), before(editing) -> messages. */
  constructor(urls, facts, actions) {
    Object.assign(this, { urls, facts, actions, context: null });
    this.field = byId("question");
    this.field.addEventListener("input", () => this.refresh());
    this.field.addEventListener("keydown", (event) => this.#keydown(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("stop").addEventListener("click", () => actions.stop());
    listenForFiles((files) => {
      this.add(files);
      this.focus();
    });
    this.refresh();
  }

  /** Adds files as images; files that are not images are reported. */
  async add(files) {
    const { max_images: most, max_image_pixels: maxPixels } = this.facts;
    const room = most - imageCount(this.actions.before(this.#editing)) - this.#images.length;
    if (files.length > room) {
      notify(`This server takes ${plural(most, "image")} in a conversation.`, {
        kind: "error",
        name: "images",
        seconds: 10,
      });
    }
    const taken = files.slice(0, Math.max(0, room));
    this.#pending += taken.length;
    this.refresh();
    const options = { detail: this.actions.detail(), maxPixels };
    await Promise.all(taken.map((file) => this.#addOne(file, options)));
  }

  async #addOne(file, options) {
    const slot = { id: null, name: file.name || "image" };
    this.#images.push(slot);
    this.refresh();
    try {
      const image = await imageOf(file, options);
      this.urls.add(image);
      const at = this.#images.indexOf(slot);
      if (at !== -1) this.#images[at] = image;
      announce(`${image.name} added, ${plural(image.grid.tokens, "token")}`);
    } catch (error) {
      this.#images = this.#images.filter((item) => item !== slot);
      notify(error.message, { kind: "error", seconds: 10 });
    } finally {
      this.#pending -= 1;
      this.refresh();
    }
  }

  /** Measures the attached images again for another level of detail. */
  async measureAgain(detail) {
    this.#images = await Promise.all(
      this.#images.map((p) => (p.id && p.detail !== detail ? remeasured(p, detail) : p)),
    );
    this.refresh();
  }

  /** Edits an earlier message; null ends editing. */
  edit(message, images) {
    if (this.#editing) this.clear();
    this.#editing = message;
    if (message) {
      this.field.value = message.text;
      this.#images = images;
    }
    this.refresh();
    this.focus();
  }

  /** Empties the composer. */
  clear() {
    this.field.value = "";
    this.#images = [];
    this.#editing = null;
    this.refresh();
  }

  /** The ids of the attached images. */
  get imageIds() {
    return this.#images.map((image) => image.id).filter(Boolean);
  }

  set text(text) {
    this.field.value = text;
    this.refresh();
  }

  /** Focuses the field, except where an on-screen keyboard would cover the page. */
  focus() {
    if (isTouch()) return;
    this.field.focus();
    this.field.setSelectionRange(this.field.value.length, this.field.value.length);
  }

  /** Shows the stop button while an answer comes. */
  set isBusy(busy) {
    this.busy = busy;
    const stopHadFocus = document.activeElement === byId("stop");
    byId("stop").hidden = !busy;
    byId("send").hidden = busy;
    if (stopHadFocus && !busy) this.focus();
    this.refresh();
  }

  /** Draws everything that depends on what is in the composer. */
  refresh() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * 0.4)}px`;
    byId("send").disabled = !this.#isReady;
    this.#showTray();
    this.#showCost();
    this.#showEditing();
  }

  get #isReady() {
    return this.#pending === 0 && (this.field.value.trim() !== "" || this.#images.length > 0);
  }

  #send() {
    if (!this.#isReady || this.busy) return;
    const [text, images, editing] = [this.field.value, this.#images, this.#editing];
    this.clear();
    if (matchMedia("(pointer: coarse)").matches)
      this.field.blur(); // its keyboard would hide the answer
    else this.focus();
    this.actions.send(text, images, editing);
  }

  #keydown(event) {
    if (event.isComposing) return;
    const sends = !isTouch() || event.ctrlKey || event.metaKey; // on a phone Enter is the only way to a new line
    if (event.key === "Enter" && !event.shiftKey && sends) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "Escape" && this.#editing && !this.busy) {
      event.stopPropagation();
      this.clear();
    } else if (event.key === "ArrowUp" && this.field.value === "" && !this.#images.length) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  #showTray() {
    const tray = byId("tray");
    tray.hidden = this.#images.length === 0;
    const shown = new Map([...tray.children].map((tile) => [tile.image, tile]));
    tray.replaceChildren(...this.#images.map((image) => shown.get(image) ?? this.#tile(image)));
  }

  #tile(image) {
    const remove = iconButton("close", `Remove ${image.name}`, () => this.#remove(image), "remove");
    const tile = h("li", { class: "tile" });
    tile.image = image;
    if (image.id === null) {
      tile.append(h("span", { class: "reading", role: "img", "aria-label": `Reading ${image.name}` }));
      return tile;
    }
    if (image.pages) {
      tile.append(h("div", { class: "tile-frame" }, sheet(image), remove), captionOf(image));
      return tile;
    }
    const width = Math.min(TILE_WIDTH, (TILE_HEIGHT * image.width) / image.height);
    const img = h("img", { alt: image.name });
    const frame = gridded(img, image, width);
    this.urls.show(img, image.id);
    const label = `${image.name}: ${describe(image)}`;
    const title = `${label} (${sentAs(image)})`;
    const open = h("button", { type: "button", class: "look", "aria-label": label, title }, frame);
    open.addEventListener("click", () => view(image, this.urls));
    tile.append(h("div", { class: "tile-frame" }, open, remove), captionOf(image));
    return tile;
  }

  #remove(image) {
    this.#images = this.#images.filter((item) => item !== image);
    this.refresh();
    this.focus();
  }

  #showCost() {
    const tokens = this.#images.reduce((sum, image) => sum + (image.grid?.tokens ?? 0), 0);
    const before = imageTokens(this.actions.before(this.#editing));
    const tooMuch = this.context !== null && before + tokens >= this.context;
    const cost = byId("cost");
    cost.classList.toggle("too-much", tooMuch);
    const all = count(before + tokens);
    const parts = [plural(this.#images.length, "image"), plural(tokens, "token")];
    if (before) parts.push(`${all} with those before`);
    if (tooMuch) cost.textContent = `${all} tokens of images: more than the ${count(this.context)} this model reads`;
    else cost.textContent = this.#images.length ? parts.join(", ") : "";
  }

  #showEditing() {
    const line = byId("editing");
    line.hidden = !this.#editing;
    if (!this.#editing || line.childElementCount) return this.#editing ? undefined : line.replaceChildren();
    const cancel = h("button", { type: "button", class: "text-button", onclick: () => this.clear() }, "Cancel");
    line.append(h("span", {}, "Sending replaces this question and what followed it."), cancel);
  }
}

/** Tokens and grid of an image, in a line. */
function captionOf({ pages, grid }) {
  const shape = pages ? plural(pages, "page") : `${grid.rows} × ${grid.cols}`;
  return h("p", { class: "caption" }, h("b", {}, count(grid.tokens)), ` tokens · ${shape}`);
}

const isTouch = () => matchMedia("(pointer: coarse)").matches;
