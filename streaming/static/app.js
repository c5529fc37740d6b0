/** The chat page: which conversation is shown, what is being answered, and the keys and buttons. */

import { ChatClient, userMessage } from "./client.js";
import * as settings from "./settings.js";
import * as store from "./store.js";
import { element, MessageView, quietButton, seconds } from "./view.js";

const $ = (id) => document.getElementById(id);
const STATES = { connecting: "", waiting: "Reconnecting", open: "", idle: "", closed: "Disconnected" };
const SAVE_MS = 1000;

const client = new ChatClient({
  url: "v1/chat/ws",
  ticket: settings.ticket,
  onState: (state) => ($("state").textContent = STATES[state]),
});
const running = new Map(); // by chat id: what is being answered
const resuming = new Set(); // chat ids: whether they have an answer is being asked
const errors = new Map(); // by chat id: what went wrong last
let views = new Map(); // by message id, of the conversation shown
let chat = store.create();
let served = [];

// Asking

function ask(question) {
  chat.messages.push(userMessage(question));
  chat.title ||= question.replace(/\s+/g, " ").slice(0, 80);
  send(chat, "submit-message");
}

function regenerate() {
  while (chat.messages.at(-1)?.role === "assistant") chat.messages.pop();
  if (chat.messages.length) send(chat, "regenerate-message");
}

function edit(message, text) {
  const at = chat.messages.findIndex((other) => other.id === message.id);
  if (at < 0) return;
  chat.messages.length = at;
  ask(text);
}

function send(asked, trigger) {
  errors.delete(asked.id);
  asked.updatedAt = Date.now();
  store.save(asked);
  const system = settings.systemPrompt();
  const prompt = system ? [{ id: "system", role: "system", parts: [{ type: "text", text: system }] }] : [];
  const messages = asked.messages.map(({ id, role, parts }) => ({ id, role, parts }));
  follow(asked, client.send({ id: asked.id, trigger, messages: [...prompt, ...messages], body: settings.body(served[0]) }));
}

/** Show an answer as it comes. `isMine`: asked by this tab, which then also keeps it while it grows. */
async function follow(asked, answer, isMine = true) {
  const run = { chat: asked, answer, status: "", message: null, isMine, savedAt: 0, since: Date.now() };
  running.set(asked.id, run);
  refresh(asked);
  try {
    for await (const event of answer) {
      if (event.type === "start") run.message = place(asked, event.messageId);
      if (event.type === "status") run.status = describe(event);
      if (event.type === "text" || event.type === "reasoning") {
        partOf(run.message, event.type).text = event.text;
        run.status = "";
      }
      if (event.type === "finish" && run.message) run.message.metadata = { ...event.metadata, end: event.finishReason };
      if (isMine && run.message && Date.now() - run.savedAt > SAVE_MS) keep(asked, run);
      draw(asked);
    }
  } catch (error) {
    errors.set(asked.id, error.message);
    if (run.message) run.message.metadata = { ...answer.metadata, end: error.code === "lost" ? "lost" : "" };
  }
  running.delete(asked.id);
  if (run.message || isMine) keep(asked, run);
  refresh(asked);
}

function keep(asked, run) {
  run.savedAt = Date.now();
  store.save(asked);
}

/** The message that an answer goes into: its own, the broken one that it takes up again, or a new one. */
function place(asked, messageId) {
  const last = asked.messages.at(-1);
  const own = asked.messages.find((message) => message.id === messageId);
  const fresh = { id: messageId, role: "assistant", parts: [], metadata: { isOpen: true } };
  if (own) Object.assign(own, { metadata: fresh.metadata });
  else if (last?.role === "assistant" && last.metadata?.isOpen) asked.messages.splice(-1, 1, fresh);
  else asked.messages.push(fresh);
  return own ?? fresh;
}

function partOf(message, type) {
  const part = message.parts.find((other) => other.type === type);
  if (!part) message.parts.push({ type, text: "" });
  return part ?? message.parts.at(-1);
}

/** Take up an answer that was open when the page was left, or that another tab has asked for. That tab may write the
 * conversation anew meanwhile: the answer goes into what is shown then. */
async function resume(asked) {
  const { id } = asked;
  const isOpen = (last) => last && (last.role !== "assistant" || last.metadata?.isOpen);
  if (!isOpen(asked.messages.at(-1)) || running.has(id) || resuming.has(id)) return;
  resuming.add(id);
  const answer = await client.resume(id).catch((error) => void errors.set(id, error.message));
  resuming.delete(id);
  if (running.has(id)) return;
  const latest = chat.id === id ? chat : asked;
  const isNews = answer && !latest.messages.slice(0, -1).some((message) => message.id === answer.messageId);
  if (isNews) return follow(latest, answer, false);
  const last = latest.messages.at(-1);
  if (last?.role === "assistant" && last.metadata?.isOpen) last.metadata = { end: "lost" };
  refresh(latest);
}

function describe({ state, queuePosition, promptTokensDone, promptTokens }) {
  if (state === "queued") return `Waiting: number ${queuePosition} in the queue`;
  if (state === "prefill") return `Reading: ${Math.floor((100 * promptTokensDone) / promptTokens)} %`;
  return "Still writing";
}

// Showing

const drawn = new Set();

/** Draw at the next frame what has changed in a running answer. */
function draw(asked) {
  if (asked.id !== chat.id) return;
  if (!drawn.size) requestAnimationFrame(() => (drawn.clear(), showMessages()));
  drawn.add(asked.id);
}

function refresh(asked) {
  showChats();
  if (asked.id === chat.id) showMessages();
}

function showMessages() {
  const area = $("messages");
  const isAtEnd = area.scrollHeight - area.scrollTop - area.clientHeight < 80;
  const run = running.get(chat.id);
  const waiting = run && !run.message ? [{ id: "waiting", role: "assistant", parts: [] }] : [];
  const messages = [...chat.messages, ...waiting];
  const kept = new Map();
  messages.forEach((message, index) => {
    const view = views.get(message.id) ?? new MessageView(message, callbacks(message));
    kept.set(message.id, view);
    const isLast = index === messages.length - 1;
    const isStreaming = Boolean(run) && isLast && message.role === "assistant";
    const error = isLast ? (errors.get(chat.id) ?? "") : "";
    view.show(message, { isStreaming, isLast, status: isStreaming ? waitingFor(run) : "", error });
    if (area.children[index] !== view.node) area.insertBefore(view.node, area.children[index] ?? null);
  });
  while (area.children.length > messages.length) area.lastChild.remove();
  views = kept;
  if (!messages.length) area.append(welcome());
  if (isAtEnd) area.scrollTop = area.scrollHeight;
  $("title").textContent = chat.title || "New conversation";
  $("send").hidden = Boolean(run);
  $("stop").hidden = !run;
}

function waitingFor(run) {
  const waited = Date.now() - run.since;
  return run.status || (run.answer.text || run.answer.reasoning || waited < 1000 ? "" : `Waiting for ${seconds(waited)}`);
}

const callbacks = (message) => ({
  isIdle: () => !running.has(chat.id),
  regenerate,
  edit: (text) => edit(message, text),
});

function welcome() {
  const model = served[0];
  const key = (name) => element("kbd", { textContent: name });
  const lines = [
    element("h2", { textContent: model ? `Talk to ${model.id}` : "jitney" }),
    element("p", { children: [key("Enter"), " sends, ", key("Shift Enter"), " makes a line, ", key("Esc"), " stops."] }),
  ];
  return element("div", { className: "empty", children: lines });
}

function showChats() {
  const items = store.list().map((other) => {
    const open = element("button", { type: "button", className: "open", textContent: other.title || "New conversation" });
    if (running.has(other.id)) open.classList.add("running");
    if (other.id === chat.id) open.setAttribute("aria-current", "page");
    open.onclick = () => show(other.id);
    const remove = quietButton("×", () => forget(other), "Delete");
    remove.classList.add("remove");
    remove.setAttribute("aria-label", `Delete ${other.title}`);
    return element("li", { className: other.id === chat.id ? "current" : "", children: [open, remove] });
  });
  $("chats").replaceChildren(...items);
}

function show(id) {
  chat = running.get(id)?.chat ?? store.load(id) ?? store.create();
  views = new Map();
  $("messages").replaceChildren();
  if (location.hash.slice(1) !== chat.id) history.replaceState(null, "", `#${chat.id}`);
  openSidebar(false);
  refresh(chat);
  $("messages").scrollTop = $("messages").scrollHeight;
  if (matchMedia("(hover: hover)").matches) $("question").focus();
  resume(chat);
}

function forget(other) {
  if (!confirm(`Delete “${other.title}”?`)) return;
  running.get(other.id)?.answer.stop();
  store.remove(other.id);
  if (other.id === chat.id) show(null);
  else showChats();
}

function openSidebar(isOpen) {
  $("sidebar").classList.toggle("shown", isOpen);
  $("shade").hidden = !isOpen;
  $("menu").setAttribute("aria-expanded", String(isOpen));
}

// Keys and buttons

function submit() {
  const question = $("question").value.trim();
  if (!question || running.has(chat.id)) return;
  $("question").value = "";
  grow();
  ask(question);
  $("messages").scrollTop = $("messages").scrollHeight;
}

function grow() {
  const input = $("question");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  $("send").disabled = !input.value.trim();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
$("stop").onclick = () => running.get(chat.id)?.answer.stop();
$("new").onclick = () => show(null);
$("open-settings").onclick = () => settings.show(served);
$("menu").onclick = () => openSidebar(!$("sidebar").classList.contains("shown"));
$("shade").onclick = () => openSidebar(false);
addEventListener("hashchange", () => show(location.hash.slice(1)));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if ($("sidebar").classList.contains("shown")) openSidebar(false);
    else running.get(chat.id)?.answer.stop();
  }
  if (event.altKey && event.code === "KeyN") show(null);
  if (event.altKey && event.code === "KeyS") settings.show(served);
});

store.watch((id) => {
  showChats();
  if (id !== chat.id || running.has(id)) return;
  const stored = store.load(id);
  if (!stored) return show(null);
  chat = stored;
  showMessages();
  resume(chat);
});

setInterval(() => running.has(chat.id) && showMessages(), 1000);

try {
  served = await settings.models();
  $("model").textContent = served[0]?.id ?? "";
} catch (error) {
  $("state").textContent = error.message;
}
grow();
show(chat.messages.length ? chat.id : location.hash.slice(1)); // who asks before the models are known stays there
