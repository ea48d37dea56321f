// Where a message is written: text, pictures by button, paste and drop, what they cost, send and stop.

import { pictureCount, pictureTokens } from "./conversation.js";
import { announce, byId, count, h, plural } from "./dom.js";
import { gridded, sheet } from "./grid.js";
import { iconButton } from "./icons.js";
import { listenForFiles } from "./intake.js";
import { notify } from "./notices.js";
import { describe, pictureOf, remeasured, sentAs } from "./pictures.js";
import { view } from "./viewer.js";

const TILE_HEIGHT = 104; // CSS pixels
const TILE_WIDTH = 220;

export class Composer {
  #pictures = [];
  #pending = 0;
  #editing = null;

  /** `actions`: send(text, pictures, editing), stop(), detail(), editLast(), before(editing) -> messages. */
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

  /** Adds files as pictures; those that are none are said. */
  async add(files) {
    const { max_images: most, max_image_pixels: maxPixels } = this.facts;
    const room = most - pictureCount(this.actions.before(this.#editing)) - this.#pictures.length;
    if (files.length > room) {
      notify(`This server takes ${plural(most, "picture")} in a conversation.`, {
        kind: "error",
        name: "pictures",
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
    const slot = { id: null, name: file.name || "picture" };
    this.#pictures.push(slot);
    this.refresh();
    try {
      const picture = await pictureOf(file, options);
      this.urls.add(picture);
      const at = this.#pictures.indexOf(slot);
      if (at !== -1) this.#pictures[at] = picture;
      announce(`${picture.name} added, ${plural(picture.grid.tokens, "token")}`);
    } catch (error) {
      this.#pictures = this.#pictures.filter((item) => item !== slot);
      notify(error.message, { kind: "error", seconds: 10 });
    } finally {
      this.#pending -= 1;
      this.refresh();
    }
  }

  /** Measures the pictures that wait for another level of detail. */
  async measureAgain(detail) {
    this.#pictures = await Promise.all(
      this.#pictures.map((p) => (p.id && p.detail !== detail ? remeasured(p, detail) : p)),
    );
    this.refresh();
  }

  /** Puts a message back to be changed; null ends that. */
  edit(message, pictures) {
    if (this.#editing) this.clear();
    this.#editing = message;
    if (message) {
      this.field.value = message.text;
      this.#pictures = pictures;
    }
    this.refresh();
    this.focus();
  }

  /** Empties the composer. */
  clear() {
    this.field.value = "";
    this.#pictures = [];
    this.#editing = null;
    this.refresh();
  }

  /** The ids of the pictures that wait. */
  get pictureIds() {
    return this.#pictures.map((picture) => picture.id).filter(Boolean);
  }

  set text(text) {
    this.field.value = text;
    this.refresh();
  }

  /** Puts the cursor at the end; not where a keyboard would cover the page. */
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
    return this.#pending === 0 && (this.field.value.trim() !== "" || this.#pictures.length > 0);
  }

  #send() {
    if (!this.#isReady || this.busy) return;
    const [text, pictures, editing] = [this.field.value, this.#pictures, this.#editing];
    this.clear();
    if (matchMedia("(pointer: coarse)").matches)
      this.field.blur(); // its keyboard would hide the answer
    else this.focus();
    this.actions.send(text, pictures, editing);
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
    } else if (event.key === "ArrowUp" && this.field.value === "" && !this.#pictures.length) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  #showTray() {
    const tray = byId("tray");
    tray.hidden = this.#pictures.length === 0;
    const shown = new Map([...tray.children].map((tile) => [tile.picture, tile]));
    tray.replaceChildren(...this.#pictures.map((picture) => shown.get(picture) ?? this.#tile(picture)));
  }

  #tile(picture) {
    const remove = iconButton("close", `Remove ${picture.name}`, () => this.#remove(picture), "remove");
    const tile = h("li", { class: "tile" });
    tile.picture = picture;
    if (picture.id === null) {
      tile.append(h("span", { class: "reading", role: "img", "aria-label": `Reading ${picture.name}` }));
      return tile;
    }
    if (picture.pages) {
      tile.append(h("div", { class: "tile-frame" }, sheet(picture), remove), captionOf(picture));
      return tile;
    }
    const width = Math.min(TILE_WIDTH, (TILE_HEIGHT * picture.width) / picture.height);
    const image = h("img", { alt: picture.name });
    const frame = gridded(image, picture, width);
    this.urls.show(image, picture.id);
    const label = `${picture.name}: ${describe(picture)}`;
    const title = `${label} (${sentAs(picture)})`;
    const open = h("button", { type: "button", class: "look", "aria-label": label, title }, frame);
    open.addEventListener("click", () => view(picture, this.urls));
    tile.append(h("div", { class: "tile-frame" }, open, remove), captionOf(picture));
    return tile;
  }

  #remove(picture) {
    this.#pictures = this.#pictures.filter((item) => item !== picture);
    this.refresh();
    this.focus();
  }

  #showCost() {
    const tokens = this.#pictures.reduce((sum, picture) => sum + (picture.grid?.tokens ?? 0), 0);
    const before = pictureTokens(this.actions.before(this.#editing));
    const tooMuch = this.context !== null && before + tokens >= this.context;
    const cost = byId("cost");
    cost.classList.toggle("too-much", tooMuch);
    const all = count(before + tokens);
    const parts = [plural(this.#pictures.length, "picture"), plural(tokens, "token")];
    if (before) parts.push(`${all} with those before`);
    if (tooMuch) cost.textContent = `${all} tokens of pictures: more than the ${count(this.context)} this model reads`;
    else cost.textContent = this.#pictures.length ? parts.join(", ") : "";
  }

  #showEditing() {
    const line = byId("editing");
    line.hidden = !this.#editing;
    if (!this.#editing || line.childElementCount) return this.#editing ? undefined : line.replaceChildren();
    const cancel = h("button", { type: "button", class: "text-button", onclick: () => this.clear() }, "Cancel");
    line.append(h("span", {}, "Sending replaces this question and what followed it."), cancel);
  }
}

/** What a picture costs, in a line. */
function captionOf({ pages, grid }) {
  const shape = pages ? plural(pages, "page") : `${grid.rows} × ${grid.cols}`;
  return h("p", { class: "caption" }, h("b", {}, count(grid.tokens)), ` tokens · ${shape}`);
}

const isTouch = () => matchMedia("(pointer: coarse)").matches;
