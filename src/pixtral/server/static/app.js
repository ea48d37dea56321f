// The page: one conversation is shown, any number of answers may be running.

import * as api from "./api.js";
import { Answers } from "./answers.js";
import { copyFrom } from "./clipboard.js";
import { Composer } from "./composer.js";
import { asText, emptyAnswer, newConversation, imageIds, titleOf, userMessage } from "./conversation.js";
import { announce, byId } from "./dom.js";
import { placeIcons } from "./icons.js";
import { apiKey } from "./key.js";
import { askForKey } from "./key-dialog.js";
import { listenForKeys } from "./keyboard.js";
import { Library } from "./library.js";
import { notify, withdraw } from "./notices.js";
import { areEqual, defaults, keepSettings, lastSettings } from "./settings.js";
import { openSettings } from "./settings-dialog.js";
import { Sidebar } from "./sidebar.js";
import { startTheme } from "./theme-button.js";
import { Thread } from "./thread.js";
import { ImageUrls } from "./urls.js";
import { fillWelcome } from "./welcome.js";

const NO_LIMITS = { auth_required: false, max_images: 100, max_image_pixels: 5e7, max_body_bytes: 5e7, demo: false };

class App {
  current = null;
  model = null;

  async start() {
    placeIcons(document);
    startTheme();
    this.facts = await api.facts().catch(() => NO_LIMITS);
    this.library = await Library.open(() => this.reload());
    this.urls = new ImageUrls((id) => this.library.blob(id));
    this.current = this.fresh();
    this.answers = new Answers(this.library, () => this.model, {
      maxBytes: this.facts.max_body_bytes,
      changed: (conversation, answer) => conversation === this.current && this.thread.update(answer),
      ended: (conversation, answer) => this.ended(conversation, answer),
    });
    this.thread = new Thread(this.urls, {
      edit: (message) => this.edit(message),
      retry: (answer) => this.retry(answer),
    });
    this.sidebar = new Sidebar({
      open: (id) => this.open(this.library.find(id)),
      rename: (id, title) => this.rename(this.library.find(id), title),
      remove: (id) => this.remove(this.library.find(id)),
    });
    this.composer = new Composer(this.urls, this.facts, {
      send: (text, images, editing) => this.send(text, images, editing),
      stop: () => this.answers.stop(this.current),
      detail: () => this.current.settings.detail,
      editLast: () => this.edit(this.current.messages.findLast((message) => message.role === "user")),
      before: (editing) => this.messagesBefore(editing),
    });
    fillWelcome(this.facts.demo, async (file, question) => {
      this.composer.text = question;
      if (!this.composer.imageIds.length) await this.composer.add([file]);
      this.composer.focus();
    });
    this.listen();
    this.open(this.library.find(location.hash.slice(1)) ?? this.current);
    document.body.classList.add("ready");
    await this.connect();
  }

  listen() {
    byId("new").addEventListener("click", () => this.open(this.fresh()));
    byId("settings").addEventListener("click", () => this.settings());
    byId("copy-all").addEventListener("click", () => copyFrom(byId("copy-all"), asText(this.current)));
    byId("key").hidden = !this.facts.auth_required;
    byId("key").addEventListener("click", () => this.askForKey("Requests to this server carry this key."));
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();
      this.composer.focus();
    });
    addEventListener("hashchange", () => {
      const found = this.library.find(location.hash.slice(1));
      if (found && found !== this.current) this.open(found);
      else if (!found && this.library.conversations.includes(this.current)) this.open(this.fresh());
    });
    listenForKeys({
      stop: () => this.answers.stop(this.current),
      focus: () => this.composer.focus(),
      fresh: () => this.open(this.fresh()),
      settings: () => this.settings(),
    });
    addEventListener("pagehide", () => this.answers.saveAll());
  }

  /** Finds the model; asks for a key where one is needed. */
  async connect() {
    if (this.facts.auth_required && !apiKey()) return this.askForKey("This server answers those who have its key.");
    try {
      const [model] = await api.models();
      this.model = model.id;
      byId("model").textContent = model.id.split("/").at(-1);
      byId("model").title = model.id;
      this.composer.context = model.max_model_len ?? null;
      this.composer.refresh();
      withdraw("server");
    } catch (error) {
      if (error.status === 401) return this.askForKey(error.message);
      notify(`${error.heading}. ${error.message}`, {
        kind: "error",
        name: "server",
        action: ["Try again", () => this.connect()],
      });
    }
  }

  askForKey(reason, then = () => this.connect()) {
    byId("key").hidden = false;
    askForKey(reason, then);
  }

  fresh() {
    return newConversation(this.usual(lastSettings()));
  }

  /** The embedded model answers best with greedy sampling. */
  usual(settings) {
    if (this.facts.demo) settings.numbers.temperature ??= 0;
    return settings;
  }

  /** Shows a conversation. */
  open(conversation) {
    if (!conversation) return;
    this.current = conversation;
    this.composer.edit(null);
    this.thread.show(conversation.messages);
    this.urls.keepOnly([...imageIds(conversation), ...this.composer.imageIds]);
    this.sidebar.toggle(false);
    this.refresh();
    this.composer.focus();
  }

  /** Everything around the messages. */
  refresh() {
    const { current } = this;
    const isKept = this.library.conversations.includes(current);
    this.sidebar.show(this.library.conversations, current.id, this.answers.busy);
    this.composer.isBusy = this.answers.busy.has(current.id);
    const title = titleOf(current);
    byId("title").textContent = title;
    document.title = isKept ? `${title} – pixtral` : "pixtral";
    byId("welcome").hidden = current.messages.length > 0;
    byId("copy-all").hidden = current.messages.length === 0;
    byId("settings").classList.toggle("changed", !areEqual(current.settings, this.usual(defaults())));
    if (location.hash.slice(1) !== (isKept ? current.id : "")) {
      history.pushState(null, "", isKept ? `#${current.id}` : location.pathname + location.search);
    }
  }

  /** Handles a change by another tab. */
  async reload() {
    await this.library.reload(this.answers.busy);
    const found = this.library.find(this.current.id);
    if (found && found !== this.current) {
      const changed = found.updated !== this.current.updated;
      this.current = found;
      if (changed) this.thread.clear();
      this.thread.show(found.messages);
    }
    this.refresh();
  }

  /** The messages before a message, or all where it is not among them. */
  messagesBefore(message) {
    const { messages } = this.current;
    const at = messages.findIndex(({ id }) => id === message?.id);
    return at === -1 ? messages : messages.slice(0, at);
  }

  /** Takes a question, in place of `editing` and what followed it if that is given, and answers it. */
  async send(text, images, editing) {
    const before = imageIds(this.current);
    this.current.messages = [...this.messagesBefore(editing), userMessage(text, images)];
    const dropped = before.filter((id) => !imageIds(this.current).includes(id));
    await this.answer(images, dropped);
  }

  async retry(answer) {
    if (this.answers.busy.has(this.current.id) || !this.current.messages.some(({ id }) => id === answer.id)) return;
    this.current.messages = this.messagesBefore(answer);
    await this.answer();
  }

  async answer(images = [], dropped = []) {
    const conversation = this.current;
    const answer = emptyAnswer();
    conversation.messages.push(answer);
    conversation.updated = Date.now();
    this.thread.show(conversation.messages);
    const done = this.answers.start(conversation, answer, images, dropped);
    this.refresh();
    await done;
  }

  ended(conversation, answer) {
    if (conversation === this.current) {
      this.thread.update(answer);
      announce(answer.error ? `${answer.error.heading}. ${answer.error.message}` : `Answer: ${answer.text}`);
    }
    this.refresh();
    if (answer.error?.status === 404) this.connect(); // the server was restarted with another model
    if (answer.error?.status === 401)
      this.askForKey(answer.error.message, () => this.connect().then(() => this.retry(answer)));
  }

  async edit(message) {
    if (!message || this.answers.busy.has(this.current.id)) return;
    const images = await Promise.all(
      message.images.map(async (p) => ({ ...p, blob: await this.library.blob(p.id) })),
    );
    this.composer.edit(
      message,
      images.filter(({ blob }) => blob),
    );
  }

  rename(conversation, title) {
    if (conversation && title !== titleOf(conversation)) {
      conversation.title = title;
      this.library.save(conversation);
    }
    this.refresh();
  }

  async remove(conversation) {
    if (!conversation) return;
    this.answers.stop(conversation);
    const undo = await this.library.remove(conversation);
    if (conversation === this.current) this.open(this.fresh());
    else this.refresh();
    const back = () => undo().then(() => this.open(conversation));
    notify(`Deleted “${titleOf(conversation)}”.`, { action: ["Undo", back], seconds: 10, name: "deleted" });
  }

  settings() {
    openSettings(this.current.settings, (settings) => {
      const { detail } = this.current.settings;
      this.current.settings = settings;
      keepSettings(settings);
      if (this.current.messages.length) this.library.save(this.current);
      if (settings.detail !== detail)
        this.composer.measureAgain(settings.detail).catch((error) => notify(error.message, { kind: "error" }));
      this.refresh();
    });
  }
}

await new App().start();
