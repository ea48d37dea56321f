// The messages of a conversation on the page.

import { byId, count, h } from "./dom.js";
import { copyButton } from "./clipboard.js";
import { gridded, sheet } from "./grid.js";
import { iconButton, setIcon } from "./icons.js";
import { Prose } from "./markdown.js";
import { describe } from "./images.js";
import { view } from "./viewer.js";

const ALONE = 200; // height of an image, in CSS pixels
const AMONG_OTHERS = 130;

export class Thread {
  #views = new Map(); // message id -> its element, prose, parts that change
  #stuck = true; // the end is followed while text comes

  /** `actions`: edit(message), retry(message). */
  constructor(urls, actions) {
    this.urls = urls;
    this.actions = actions;
    this.list = byId("thread");
    this.scroller = byId("scroll");
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    byId("latest").addEventListener("click", () => this.toEnd());
    const resized = new ResizeObserver(() => this.#follow()); // by text, or by what is put into the composer
    resized.observe(this.list);
    resized.observe(this.scroller);
  }

  /** Forgets what is shown. */
  clear() {
    this.#views.clear();
    this.list.replaceChildren();
  }

  /** Shows a conversation, down to its end. Messages that are shown already keep their elements. */
  show(messages) {
    const ids = new Set(messages.map((message) => message.id));
    for (const [id, { item }] of this.#views) {
      if (ids.has(id)) continue;
      item.remove();
      this.#views.delete(id);
    }
    for (const message of messages) this.update(message);
    this.toEnd();
  }

  /** Adds a message, or draws it anew after it has changed. */
  update(message) {
    if (!this.#views.has(message.id)) this.#add(message);
    if (message.role === "assistant") this.#drawAnswer(message, this.#views.get(message.id));
    this.#follow();
  }

  /** Scrolls to the end and follows it. */
  toEnd() {
    this.#stuck = true;
    this.#follow();
  }

  #add(message) {
    const item = h("li", { class: `message ${message.role}`, "data-id": message.id });
    const parts = { item };
    if (message.role === "user") this.#fillQuestion(item, message);
    else {
      parts.prose = new Prose();
      parts.notice = h("div", { class: "trouble", role: "alert", hidden: true });
      parts.foot = h("div", { class: "message-foot" });
      item.append(h("h3", { class: "unseen" }, "Answer"), parts.prose.element, parts.notice, parts.foot);
    }
    this.#views.set(message.id, parts);
    this.list.append(item);
  }

  #fillQuestion(item, message) {
    item.append(h("h3", { class: "unseen" }, "Question"));
    const height = message.images.length > 1 ? AMONG_OTHERS : ALONE;
    const images = message.images.map((image) => this.#image(image, height));
    if (images.length) item.append(h("ul", { class: "images" }, ...images));
    if (message.text.trim()) item.append(h("div", { class: "bubble" }, message.text));
    const copy = message.text && copyButton(() => message.text, "Copy the question");
    const edit = iconButton("edit", "Edit the question", () => this.actions.edit(message));
    item.append(h("div", { class: "message-foot" }, copy, edit));
  }

  #image(image, height) {
    if (image.pages) return h("li", { title: describe(image) }, sheet(image));
    const width = Math.min((height * image.width) / image.height, 320);
    const img = h("img", { alt: image.name, loading: "lazy" });
    const frame = gridded(img, image, width);
    this.urls.show(img, image.id);
    const label = `${image.name}: ${describe(image)}`;
    const open = () => view(image, this.urls);
    return h(
      "li",
      {},
      h("button", { type: "button", class: "look", "aria-label": label, title: label, onclick: open }, frame),
    );
  }

  #drawAnswer(answer, { item, prose, notice, foot }) {
    item.classList.toggle("waiting", answer.state === "streaming" && !answer.text);
    item.classList.toggle("streaming", answer.state === "streaming");
    item.setAttribute("aria-busy", String(answer.state === "streaming"));
    prose.show(answer.text);
    notice.hidden = !answer.error;
    if (answer.error && !notice.childElementCount) {
      const { heading, message, retryAfter } = answer.error;
      const wait = retryAfter ? ` It asks to wait ${retryAfter} s.` : "";
      notice.append(h("strong", {}, heading), h("p", {}, sentence(message) + wait));
      setIcon(notice, "warning");
    }
    if (answer.state !== "streaming" && !foot.childElementCount) this.#fillFoot(foot, answer);
  }

  #fillFoot(foot, answer) {
    const retry = iconButton("retry", "Answer again", () => this.actions.retry(answer));
    retry.classList.add("retry");
    if (answer.text) foot.append(copyButton(() => answer.text, "Copy the answer"));
    foot.append(retry, h("span", { class: "meta" }, metaOf(answer)));
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.#stuck = scrollHeight - scrollTop - clientHeight < 60;
    byId("latest").hidden = this.#stuck;
  }

  #follow() {
    if (this.#stuck) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.#scrolled();
  }
}

/** A message of the server as a sentence. */
function sentence(text) {
  const whole = text.trim();
  return whole.charAt(0).toUpperCase() + whole.slice(1) + (/[.!?…)\]}]$/.test(whole) ? "" : ".");
}

/** Tokens, times and end of an answer. */
function metaOf(answer) {
  const parts = [];
  if (answer.state === "stopped") parts.push("Stopped");
  if (answer.state === "length") parts.push("Cut off at the longest answer");
  if (answer.usage) {
    const cached = answer.usage.cached ? ` (${count(answer.usage.cached)} cached)` : "";
    parts.push(`${count(answer.usage.prompt)}${cached} + ${count(answer.usage.completion)} tokens`);
  }
  if (answer.timing && answer.state !== "failed") {
    parts.push(`${answer.timing.first.toFixed(answer.timing.first < 1 ? 2 : 1)} s to the first`);
    const speed = answer.usage && answer.timing.rest > 0.05 ? (answer.usage.completion - 1) / answer.timing.rest : 0;
    if (speed >= 1) parts.push(`${Math.round(speed)} per second`);
  }
  return parts.join(" · ");
}
