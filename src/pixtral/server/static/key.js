// The API key: kept for this tab, or on this device if the user chooses that.

const NAME = "pixtral.key";

/** The key, or "". */
export function apiKey() {
  return read(() => sessionStorage) || read(() => localStorage) || held;
}

/** Whether the key outlives this tab. */
export const keyIsKept = () => read(() => localStorage) !== "";

let held = ""; // for browsers without storage

/** Takes a key; "" forgets the one there is. */
export function setApiKey(key, keep) {
  held = key;
  write(() => sessionStorage, keep ? "" : key);
  write(() => localStorage, keep ? key : "");
}

function read(storage) {
  try {
    return storage().getItem(NAME) ?? "";
  } catch {
    return "";
  }
}

function write(storage, key) {
  try {
    if (key) storage().setItem(NAME, key);
    else storage().removeItem(NAME);
  } catch {
    // storage is switched off or full; `held` has it
  }
}
