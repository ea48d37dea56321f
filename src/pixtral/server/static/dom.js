// Builds elements without parsing HTML: text stays text.

/** An element with attributes, listeners (onclick: function) and children (nodes or text). */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The element with this id, which has to be there. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element #${id}`);
  return element;
}

/** Announces a text to screen readers only. */
export function announce(text) {
  byId("announce").textContent = text;
}

/** 1234 -> "1,234". */
export function count(number) {
  return number.toLocaleString("en-US");
}

/** count(1, "token") -> "1 token". */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** 5_300_000 -> "5.3 MB". */
export function bytes(number) {
  return number < 1e6 ? `${Math.max(1, Math.round(number / 1e3))} kB` : `${(number / 1e6).toFixed(1)} MB`;
}

/** A unique id; crypto.randomUUID is missing where the page came over plain HTTP. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
