// The list of conversations, and the drawer that it is on a phone.

import { byId, h } from "./dom.js";
import { iconButton } from "./icons.js";
import { titleOf } from "./conversation.js";

export class Sidebar {
  /** `actions`: open(id), rename(id, title), remove(id). */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("conversations");
    byId("open-sidebar").addEventListener("click", () => this.toggle(true));
    byId("close-sidebar").addEventListener("click", () => this.toggle(false));
    byId("scrim").addEventListener("click", () => this.toggle(false));
    byId("sidebar").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isOpen) {
        event.stopPropagation();
        this.toggle(false);
      }
    });
  }

  get isOpen() {
    return document.body.classList.contains("drawer");
  }

  /** Opens or closes the drawer; on a wide window the list is always there. */
  toggle(open) {
    if (open === this.isOpen) return;
    document.body.classList.toggle("drawer", open);
    byId("scrim").hidden = !open;
    byId("main").inert = open;
    byId("open-sidebar").setAttribute("aria-expanded", String(open));
    byId(open ? "close-sidebar" : "open-sidebar").focus();
  }

  /** Lists the conversations under the days they were last used; `current` is marked, those in `busy` are answering. */
  show(conversations, current, busy) {
    if (document.activeElement?.matches("#conversations .rename")) return; // a title is being edited
    const focused = document.activeElement?.closest?.("#conversations li")?.dataset.id;
    const items = [];
    let heading = null;
    for (const conversation of conversations) {
      const age = ageOf(conversation.updated);
      if (age !== heading) items.push(h("li", { class: "age" }, (heading = age)));
      items.push(this.#item(conversation, conversation.id === current, busy.has(conversation.id)));
    }
    this.list.replaceChildren(...items);
    if (focused) (this.list.querySelector(`[data-id="${focused}"] .open`) ?? byId("new")).focus(); // it may be gone
  }

  #item(conversation, isCurrent, isBusy) {
    const title = titleOf(conversation);
    const current = isCurrent ? "page" : null;
    const open = h(
      "button",
      {
        type: "button",
        class: "open",
        title,
        "aria-current": current,
        onclick: () => this.actions.open(conversation.id),
      },
      h("span", {}, title),
      isBusy && h("span", { class: "busy", role: "img", "aria-label": "answering" }),
    );
    const rename = iconButton("edit", `Rename “${title}”`, () => this.#rename(item, conversation.id, title));
    const remove = iconButton("trash", `Delete “${title}”`, () => this.actions.remove(conversation.id));
    const item = h("li", { "data-id": conversation.id, class: isCurrent ? "current" : null }, open, rename, remove);
    open.addEventListener("keydown", (event) => {
      if (event.key === "F2") this.#rename(item, conversation.id, title);
      if (event.key === "Delete") this.actions.remove(conversation.id);
    });
    return item;
  }

  #rename(item, id, title) {
    const field = h("input", { class: "rename", "aria-label": "Title", maxlength: "100" });
    field.value = title;
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      field.remove();
      this.actions.rename(id, keep && field.value.trim() ? field.value.trim() : title);
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.stopPropagation();
      event.preventDefault();
      finish(event.key === "Enter");
      this.list.querySelector(`[data-id="${id}"] .open`)?.focus();
    });
    field.addEventListener("blur", () => finish(true));
    item.replaceChildren(field);
    field.select();
  }
}

function ageOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const days = (midnight - time) / 86_400_000;
  if (days <= 0) return "Today";
  if (days <= 1) return "Yesterday";
  return days <= 7 ? "Last seven days" : "Earlier";
}
