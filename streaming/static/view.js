/** Messages on the screen. Knows no client and no store: it shows what it is given and calls back. */

import { copyText, render } from "./markdown.js";

export function element(name, { children = [], ...properties } = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function quietButton(label, onclick, title = "") {
  return element("button", { type: "button", className: "quiet", textContent: label, title, onclick });
}

/** One message; `show` brings it up to date. `on` holds `regenerate`, `edit(text)` and whether it may: `isIdle()`. */
export class MessageView {
  constructor(message, on) {
    this.on = on;
    this.text = element("div", { className: "text" });
    this.figures = element("span", { className: "figures" });
    this.actions = element("span", { className: "actions" });
    this.foot = element("div", { className: "foot", children: [this.figures, this.actions] });
    this.error = element("p", { className: "error", hidden: true });
    this.thoughts = element("p");
    this.reasoning = element("details", {
      className: "reasoning",
      children: [element("summary", { textContent: "Reasoning" }), this.thoughts],
    });
    this.node = element("article", { children: [this.reasoning, this.text, this.error, this.foot] });
    this.node.dataset.id = message.id;
    this.show(message);
  }

  show(message, { isStreaming = false, isLast = false, status = "", error = "" } = {}) {
    this.message = message;
    const text = textOf(message);
    this.node.className = `message ${message.role}${isStreaming ? " streaming" : ""}`;
    this.node.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
    this.node.setAttribute("aria-busy", String(isStreaming));
    if (message.role === "user") this.text.textContent = text;
    else render(this.text, text);
    const thoughts = textOf(message, "reasoning");
    this.reasoning.hidden = !thoughts;
    this.thoughts.textContent = thoughts;
    if (isStreaming && thoughts) this.reasoning.open = !text;
    this.error.hidden = !error;
    this.error.textContent = error;
    this.figures.textContent = isStreaming ? status : figures(message.metadata ?? {});
    this.#showActions(message, isStreaming, isLast);
  }

  #showActions(message, isStreaming, isLast) {
    const shown = `${message.role} ${isStreaming} ${isLast}`;
    if (shown === this.shown) return;
    this.shown = shown;
    const buttons = [];
    if (!isStreaming) {
      const copy = quietButton("Copy", () => copyText(textOf(this.message), copy));
      buttons.push(copy);
    }
    if (message.role === "user" && !isStreaming) buttons.push(quietButton("Edit", () => this.#edit()));
    const again = message.role === "assistant" ? "Regenerate" : "Send again";
    if (isLast && !isStreaming) buttons.push(quietButton(again, () => this.on.regenerate(), "Ask for another answer"));
    this.actions.replaceChildren(...buttons);
  }

  #edit() {
    if (!this.on.isIdle()) return;
    const input = element("textarea", { value: textOf(this.message), rows: 3 });
    input.setAttribute("aria-label", "Edit your message");
    const leave = () => {
      editor.replaceWith(this.text);
      this.foot.hidden = false;
    };
    const save = () => {
      leave();
      if (input.value.trim()) this.on.edit(input.value.trim());
    };
    const menu = element("menu", {
      children: [
        element("button", { type: "button", textContent: "Cancel", onclick: leave }),
        element("button", { type: "button", textContent: "Send", className: "primary", onclick: save }),
      ],
    });
    const editor = element("div", { className: "editor", children: [input, menu] });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        save();
      }
    });
    this.text.replaceWith(editor);
    this.foot.hidden = true;
    input.focus();
  }
}

export const textOf = (message, type = "text") =>
  message.parts.map((part) => (part.type === type ? part.text : "")).join("");

const ENDS = { length: "cut at the longest answer", interrupted: "its time was up", aborted: "stopped", lost: "broken off" };

function figures({ tokensPerSecond, timeToFirstTokenMs, usage, end }) {
  const parts = [];
  if (tokensPerSecond) parts.push(`${tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0)} tokens/s`);
  if (timeToFirstTokenMs !== undefined) parts.push(`first after ${seconds(timeToFirstTokenMs)}`);
  if (usage) parts.push(`${usage.outputTokens} token${usage.outputTokens === 1 ? "" : "s"}`);
  if (ENDS[end]) parts.push(ENDS[end]);
  return parts.join(" · ");
}

export const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`);
