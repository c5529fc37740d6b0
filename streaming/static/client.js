/**
 * A client for `WS /v1/chat/ws`: many answers at once over one socket, none lost when the network drops.
 *
 *     import { ChatClient } from "/client.js";
 *
 *     const client = new ChatClient();
 *     const answer = client.send({ id: "my-chat", messages: [userMessage("Why is the sky blue?")] });
 *     for await (const event of answer)
 *       if (event.type === "text") output.textContent = event.text;
 *
 * `answer.stop()` ends the answer on the server; leaving the loop does too. When the socket closes in mid-answer the
 * client connects again, with a pause that grows, and follows the answer from where it was: the events of one answer
 * join to its exact text, whatever happened in between. After a reload, `await client.resume("my-chat")` gives the
 * answer back, or null where the server has none.
 *
 * No dependencies, no build step. Types are in client.d.ts.
 */

const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 8000;
const MAX_FIRST_ATTEMPTS = 5;
const SILENCE_MS = 30_000; // the server speaks at least every few seconds while an answer is open
const FINAL_CODES = [1002, 1003, 1007, 1008, 1009, 1010];

export class ChatError extends Error {
  /** `code`: "refused" by the server, "failed" there after it began, "lost" for good, or "closed" by this side. */
  constructor(code, message) {
    super(message);
    this.name = "ChatError";
    this.code = code;
  }
}

/** A user's message as `send` takes it. */
export function userMessage(text, id = newId()) {
  return { id, role: "user", parts: [{ type: "text", text }] };
}

export class ChatClient {
  #url;
  #ticket;
  #WebSocket;
  #onState;
  #state = "idle";
  #socket = null;
  #answers = new Map(); // by request id: those that are open
  #stopped = new Map(); // request id to chat id: stopped while there was no connection to say so
  #attempt = 0;
  #wasOpen = false;
  #timers = {};
  #heardAt = 0;
  #hurry = () => this.#online();

  constructor({ url = "/v1/chat/ws", ticket = null, onState = () => {}, webSocket = globalThis.WebSocket } = {}) {
    this.#url = url;
    this.#ticket = ticket;
    this.#onState = onState;
    this.#WebSocket = webSocket;
    globalThis.addEventListener?.("online", this.#hurry);
  }

  /** "idle", "connecting", "open", "waiting" (for the next attempt) or "closed". */
  get state() {
    return this.#state;
  }

  /** Ask for an answer to `messages`, the whole conversation. It begins at once; iterate to follow it. */
  send({ id, messages, trigger = "submit-message", messageId, body = {}, metadata }) {
    return this.#open(id, { type: "send", id, trigger, messageId, messages, headers: {}, body, metadata });
  }

  /** The answer that a chat has on the server, running or kept: from its first word. Null where there is none. */
  async resume(chatId) {
    const answer = this.#open(chatId, null);
    return (await answer.found) ? answer : null;
  }

  /** End the connection. Answers in progress go on at the server for as long as it keeps them. */
  close() {
    if (this.#state === "closed") return;
    this.#setState("closed");
    globalThis.removeEventListener?.("online", this.#hurry);
    this.#drop();
    this.#failAll(new ChatError("closed", "the client was closed"));
  }

  #open(chatId, request) {
    if (this.#state === "closed") throw new ChatError("closed", "the client was closed");
    const answer = new Answer(chatId, request, {
      begin: () => this.#begin(answer),
      leave: () => this.#answers.delete(answer.requestId),
      abort: () => this.#abort(answer),
    });
    this.#begin(answer);
    return answer;
  }

  #begin(answer) {
    this.#answers.set(answer.requestId, answer);
    if (!this.#post(answer)) this.#connect();
  }

  #post(answer) {
    if (this.#socket?.readyState !== 1) return false;
    this.#socket.send(JSON.stringify(answer._frame()));
    return true;
  }

  #abort({ requestId, chatId }) {
    const abort = JSON.stringify({ type: "abort", requestId });
    if (this.#socket?.readyState === 1) this.#socket.send(abort);
    else this.#stopped.set(requestId, chatId);
  }

  async #connect() {
    if (this.#socket || this.#state === "connecting" || this.#state === "closed" || !this.#isNeeded) return;
    clearTimeout(this.#timers.retry);
    this.#setState("connecting");
    try {
      const url = new URL(this.#url, globalThis.location?.href);
      url.protocol = url.protocol.replace("http", "ws");
      const ticket = await this.#ticket?.();
      if (ticket) url.searchParams.set("ticket", ticket);
      if (this.#state === "connecting") this.#attach(new this.#WebSocket(url));
    } catch (error) {
      if (error instanceof ChatError) this.#giveUp(error);
      else this.#lost(1006, String(error?.message ?? error));
    }
  }

  #attach(socket) {
    this.#socket = socket;
    socket.onopen = () => {
      this.#attempt = 0;
      this.#wasOpen = true;
      this.#heardAt = Date.now();
      this.#timers.watch = setInterval(() => this.#listen(), SILENCE_MS / 6);
      this.#setState("open");
      for (const answer of [...this.#answers.values()]) this.#post(answer);
      for (const [requestId, chatId] of this.#stopped) {
        socket.send(JSON.stringify(resumeFrame(requestId, chatId)));
        socket.send(JSON.stringify({ type: "abort", requestId }));
      }
      this.#stopped.clear();
    };
    socket.onmessage = (event) => {
      this.#heardAt = Date.now();
      const frame = JSON.parse(event.data);
      this.#answers.get(frame.requestId)?._receive(frame);
    };
    socket.onclose = (event) => this.#lost(event.code, event.reason);
    socket.onerror = () => {}; // a close follows
  }

  /** A connection that is half open says nothing: given up after a silence, if an answer is due. */
  #listen() {
    if (this.#answers.size && Date.now() - this.#heardAt > SILENCE_MS) this.#lost(1006, "silence");
  }

  /** The network is back: a socket from before may be dead and not know. */
  #online() {
    if (this.#socket?.readyState === 1 && this.#isNeeded && Date.now() - this.#heardAt > SILENCE_MS / 5) this.#drop();
    this.#connect();
  }

  #lost(code, reason) {
    this.#drop();
    if (FINAL_CODES.includes(code)) return this.#giveUp(new ChatError("refused", reason || `closed with ${code}`));
    if (!this.#isNeeded) return this.#setState("idle");
    if (!this.#wasOpen && this.#attempt >= MAX_FIRST_ATTEMPTS)
      return this.#giveUp(new ChatError("lost", "the server cannot be reached"));
    const pause = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.#attempt++) * (0.5 + Math.random() / 2);
    this.#setState("waiting");
    this.#timers.retry = setTimeout(() => this.#connect(), pause);
  }

  #drop() {
    clearTimeout(this.#timers.retry);
    clearInterval(this.#timers.watch);
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #giveUp(error) {
    this.#attempt = 0;
    this.#setState("idle");
    this.#failAll(error);
  }

  #failAll(error) {
    this.#stopped.clear();
    for (const answer of [...this.#answers.values()]) answer._fail(error);
  }

  get #isNeeded() {
    return this.#answers.size + this.#stopped.size > 0;
  }

  #setState(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#onState(state);
  }
}

/** One answer: an async iterable of events, to be iterated once. The properties are as of the latest event. */
export class Answer {
  text = "";
  reasoning = ""; // what the model wrote for itself before its answer, where it does
  messageId = null;
  metadata = {};
  finishReason = null; // "stop", "length", "interrupted"; "aborted" where it was stopped
  isDone = false;

  #request; // the `send` frame; null where an earlier answer is resumed
  #line; // the way to the client: begin, leave, abort
  #isPosted = false;
  #events = [];
  #wake = () => {};
  #error = null;
  #delivered = { text: 0, reasoning: 0 }; // characters, by the connection at hand
  #found;

  constructor(chatId, request, line) {
    this.chatId = chatId;
    this.requestId = newId();
    this.#request = request;
    this.#line = line;
    this.found = new Promise((resolve, reject) => (this.#found = { resolve, reject }));
    this.found.catch(() => {});
  }

  /** End the answer on the server, for everyone who follows it. Its text so far remains. */
  stop() {
    if (this.isDone) return;
    this.#line.abort();
    this.#finish("aborted");
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        while (this.#events.length) yield this.#events.shift();
        if (this.#error) throw this.#error;
        if (this.isDone) return;
        await new Promise((resolve) => (this.#wake = resolve));
      }
    } finally {
      this.stop();
    }
  }

  /** What to say on a new connection. The server replays a resumed answer; what is known of its text is skipped. */
  _frame() {
    this.#delivered = { text: 0, reasoning: 0 };
    if (this.#request && !this.#isPosted) {
      this.#isPosted = true;
      return { ...this.#request, requestId: this.requestId };
    }
    return resumeFrame(this.requestId, this.chatId);
  }

  _receive(frame) {
    if (frame.type === "chunk") this.#read(frame.chunk);
    else if (frame.type === "end") this.#finish(this.finishReason ?? "stop");
    else if (frame.type === "no-active") this.#missing();
    else if (frame.type === "error") this._fail(new ChatError("refused", frame.errorText ?? "the server refused"));
  }

  _fail(error) {
    this.#error = error;
    this.#found.reject(error);
    this.#end();
  }

  #read(chunk) {
    if (chunk.type === "start") this.#begin(chunk);
    else if (chunk.type === "data-status") this.#emit({ type: "status", ...chunk.data });
    else if (chunk.type === "text-delta") this.#add("text", chunk.delta);
    else if (chunk.type === "reasoning-delta") this.#add("reasoning", chunk.delta);
    else if (chunk.type === "message-metadata") Object.assign(this.metadata, chunk.messageMetadata);
    else if (chunk.type === "abort") this.finishReason = "aborted";
    else if (chunk.type === "error") this._fail(new ChatError("failed", chunk.errorText));
    else if (chunk.type === "finish") {
      this.finishReason = chunk.finishReason;
      Object.assign(this.metadata, chunk.messageMetadata);
    }
  }

  #begin({ messageId, messageMetadata }) {
    const isOther = this.#request ? messageMetadata.requestId !== this.requestId : false;
    if (this.messageId === null && isOther) return this.#sendAgain();
    if (this.messageId !== null && this.messageId !== messageId) return this.#missing();
    if (this.messageId !== null) return;
    this.messageId = messageId;
    Object.assign(this.metadata, messageMetadata);
    this.#found.resolve(true);
    this.#emit({ type: "start", messageId });
  }

  /** `part` is "text" or "reasoning". */
  #add(part, delta) {
    const known = this[part].length - this.#delivered[part];
    this.#delivered[part] += delta.length;
    const fresh = known > 0 ? delta.slice(known) : delta;
    if (!fresh) return;
    this[part] += fresh;
    this.#emit({ type: part, delta: fresh, text: this[part] });
  }

  /** The server does not have it: never had, where it has not begun. */
  #missing() {
    if (this.messageId !== null) return this._fail(new ChatError("lost", "the server no longer has this answer"));
    if (this.#request) return this.#sendAgain();
    this.#found.resolve(false);
    this.#end();
  }

  /** What a lost connection swallowed before the server read it. */
  #sendAgain() {
    this.#line.leave();
    this.requestId = newId();
    this.#isPosted = false;
    this.#line.begin();
  }

  #finish(reason) {
    this.finishReason = reason;
    this.#found.resolve(true);
    this.#emit({ type: "finish", finishReason: reason, metadata: this.metadata });
    this.#end();
  }

  #emit(event) {
    this.#events.push(event);
    this.#wake();
  }

  #end() {
    this.isDone = true;
    this.#line.leave();
    this.#wake();
  }
}

function resumeFrame(requestId, id) {
  return { type: "resume", requestId, id, headers: {}, body: {} };
}

function newId() {
  return globalThis.crypto?.randomUUID?.() ?? `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
}
