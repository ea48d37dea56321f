// What can be set for a conversation, and how it goes into a request. What is empty is left to the server.

const NAME = "pixtral.settings";

/** The numbers; bounds are those of the API. */
export const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1, hint: "0 always takes the likeliest word" },
  { name: "max_tokens", label: "Longest answer", min: 1, step: 1, hint: "in tokens" },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: 0.05, hint: "share of probability to choose from" },
  { name: "top_k", label: "Top k", min: 0, step: 1, hint: "number of tokens to choose from" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, hint: "against the likeliest" },
  { name: "seed", label: "Seed", min: 0, step: 1, hint: "the same answer again" },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, hint: "for what was said" },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, hint: "for each time" },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.1, max: 2, step: 0.05, hint: "1 is none" },
];

export const DETAILS = [
  ["auto", "As the server decides"],
  ["high", "High: all that the model can see"],
  ["low", "Low: fewer tokens"],
];

/** Nothing set. */
export const defaults = () => ({ system: "", detail: "auto", stop: "", numbers: {} });

/** The settings new conversations start from: those that were used last, without the instructions. */
export function lastSettings() {
  try {
    return cleaned(JSON.parse(localStorage.getItem(NAME) ?? "{}"));
  } catch {
    return defaults();
  }
}

/** Keeps settings for new conversations. */
export function keepSettings(settings) {
  try {
    localStorage.setItem(NAME, JSON.stringify({ ...settings, system: "" }));
  } catch {
    // storage is switched off or full: they hold for this conversation
  }
}

/** Settings without what is not one: they may come from an older page. */
export function cleaned(settings) {
  const result = { ...defaults(), ...settings, numbers: {} };
  for (const field of NUMBERS) {
    const value = settings.numbers?.[field.name];
    if (typeof value === "number" && fits(field, value)) result.numbers[field.name] = value;
  }
  if (!DETAILS.some(([name]) => name === result.detail)) result.detail = "auto";
  return result;
}

/** Whether a number lies within its field's bounds. */
export function fits({ min, max = Infinity, step }, value) {
  return value >= min && value <= max && (step < 1 || Number.isInteger(value));
}

/** Whether two conversations have the same settings. */
export function areEqual(one, other) {
  return JSON.stringify(cleaned(one)) === JSON.stringify(cleaned(other));
}

/** The fields of a request. */
export function requestFields(settings) {
  const stop = settings.stop.split("\n").filter((line) => line !== "");
  return { ...settings.numbers, ...(stop.length ? { stop } : {}) };
}
