// The keys that work everywhere on the page.

/** `keys`: stop() -> whether there was something to stop, focus(), fresh(), settings(). */
export function listenForKeys(keys) {
  addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const typing = event.target.matches?.("input, textarea, select");
    let done = true;
    if (event.key === "Escape") done = keys.stop();
    else if (event.key === "/" && !typing) keys.focus();
    else if (event.altKey && event.code === "KeyN") keys.fresh();
    else if (event.altKey && event.code === "Comma") keys.settings();
    else done = false;
    if (done) event.preventDefault();
  });
}
