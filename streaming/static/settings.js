/** The settings dialog: what is sent along with every question. */

import { ChatError } from "./client.js";
import * as key from "./key.js";
import { element } from "./view.js";
import * as store from "./store.js";

const DEFAULT_MAX_TOKENS = 1024;
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

const dialog = document.getElementById("settings");
const form = dialog.querySelector("form");

/** The `body` of a request to a model. */
export function body(model) {
  const values = { max_tokens: longest(model), ...store.settings() };
  return Object.fromEntries(["model", ...NUMBERS].filter((name) => values[name] != null).map((name) => [name, values[name]]));
}

/** How long an answer may become where nothing is set: a model that rambles should end some day. */
const longest = (model) => Math.min(DEFAULT_MAX_TOKENS, Math.ceil((model?.max_model_len ?? Infinity) / 2));

export const systemPrompt = () => store.settings().system ?? "";

/** The models that are served. */
export async function models() {
  const reply = await key.request("v1/models");
  if (!reply.ok) throw new Error(`the server answers with ${reply.status}`);
  return (await reply.json()).data;
}

/** A one-time ticket for a socket, where the page has a key; else null: the socket needs none. */
export async function ticket() {
  if (!key.has()) return null;
  const reply = await fetch("v1/ws-tickets", { method: "POST", headers: key.headers(), body: "{}" });
  if (reply.ok) return (await reply.json()).ticket;
  const { error } = await reply.json().catch(() => ({}));
  if (reply.status === 401 || reply.status === 403) throw new ChatError("refused", error?.message ?? "the key is refused");
  throw new Error(error?.message ?? `no ticket: ${reply.status}`);
}

export function show(served) {
  const values = store.settings();
  form.elements.model.replaceChildren(
    ...served.map((model) => element("option", { value: model.id, textContent: model.id })),
  );
  for (const name of ["system", ...NUMBERS]) form.elements[name].value = values[name] ?? "";
  if (served.some((model) => model.id === values.model)) form.elements.model.value = values.model;
  form.elements.max_tokens.placeholder = longest(served[0]);
  dialog.showModal();
}

dialog.addEventListener("close", () => {
  const values = {};
  for (const name of NUMBERS) {
    const value = form.elements[name].valueAsNumber;
    if (Number.isFinite(value)) values[name] = value;
  }
  if (form.elements.system.value.trim()) values.system = form.elements.system.value.trim();
  store.saveSettings(values);
});
