// `WebSocketChatTransport` of the AI SDK under its own `AbstractChat`, unmodified: what a `useChat` page runs.
import assert from "node:assert/strict";
import { AbstractChat, WebSocketChatTransport } from "ai";
import WebSocket from "ws";

const [url] = process.argv.slice(2);
const sockets = [];

class Socket extends WebSocket {
  constructor(...args) {
    super(...args);
    sockets.push(this);
  }
}

/** The state that a framework's hook would keep. */
class State {
  status = "ready";
  error = undefined;
  messages = [];
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => (this.messages = this.messages.with(index, message));
  snapshot = (thing) => structuredClone(thing);
}

class Chat extends AbstractChat {
  constructor(id, transport, init = {}) {
    super({ id, transport, state: new State(), ...init });
  }
}

const transport = new WebSocketChatTransport({
  url: `${url}/v1/chat/ws`,
  webSocket: Socket,
  body: { temperature: 0, max_tokens: 48 },
});
const text = (message) => message.parts.map((part) => part.text ?? "").join("");
const until = async (condition) => {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
};

// Two chats on one socket, a second turn that remembers the first, and what goes with an answer.
const [one, two] = [new Chat("one", transport), new Chat("two", transport)];
await Promise.all([
  one.sendMessage({ text: "What is the capital of France?" }),
  two.sendMessage({ text: "Name three primary colours." }),
]);
for (const chat of [one, two]) {
  assert.equal(chat.error, undefined);
  assert.equal(chat.status, "ready");
  assert.deepEqual(chat.messages.map(({ role }) => role), ["user", "assistant"]);
}
assert.match(text(one.messages[1]), /Paris/);
assert.equal(sockets.length, 1);
const about = one.messages[1].metadata;
assert.ok(about.usage.outputTokens > 3 && about.timeToFirstTokenMs > 0 && about.tokensPerSecond > 0);
await one.sendMessage({ text: "And of Italy?" });
assert.equal(one.messages.length, 4);
assert.match(text(one.messages[3]), /Rome/);

// Regenerate: the answer is replaced, and greedy sampling gives it again.
const before = text(one.messages[3]);
await one.regenerate();
assert.equal(one.messages.length, 4);
assert.equal(text(one.messages[3]), before);

// Stop: what was said stays, and the chat takes the next message at once.
const long = new Chat("long", transport);
const asked = long.sendMessage({ text: "Tell me a long story about a fox." }, { body: { max_tokens: 800 } });
await until(() => long.messages.length === 2 && text(long.messages[1]).length > 20);
await long.stop();
await asked;
assert.equal(long.status, "ready");
await long.sendMessage({ text: "What is the capital of France?" });
assert.equal(long.error, undefined);
assert.equal(long.messages.length, 4);

// The connection drops in mid-answer: the chat resumes, and holds exactly the text of an answer that was not cut.
const question = { text: "Explain in two sentences what a compiler does." };
const body = { max_tokens: 120 };
const whole = new Chat("whole", transport);
await whole.sendMessage(question, { body });
let cut;
do {
  cut = new Chat(`cut ${sockets.length}`, transport);
  const sent = cut.sendMessage(question, { body });
  await until(() => cut.messages.length === 2 && text(cut.messages[1]).length > 20);
  sockets.at(-1).terminate();
  await sent;
} while (cut.status === "ready"); // the answer was whole before the connection broke
const id = cut.messages[1].id;
assert.equal(cut.status, "error");
await cut.resumeStream();
assert.equal(cut.status, "ready");
assert.deepEqual(cut.messages.map((message) => message.id).slice(1), [id]);
assert.equal(text(cut.messages[1]), text(whole.messages[1]));

// The lines of the README: a page that takes up its answer by itself when the network fails.
const healed = new Chat("healed", transport, {
  onFinish: ({ isDisconnect }) => isDisconnect && healed.resumeStream(),
});
void healed.sendMessage(question, { body });
for (const length of [20, 120]) {
  await until(() => healed.messages.length === 2 && text(healed.messages[1]).length > length);
  sockets.at(-1).terminate();
}
await until(() => healed.status === "ready" && text(healed.messages[1]).length >= text(whole.messages[1]).length);
assert.equal(text(healed.messages[1]), text(whole.messages[1]));
assert.equal(healed.messages.length, 2);

// A page that was loaded anew knows the question only, and finds the answer; a chat that never was has none.
const reloaded = new Chat(cut.id, transport);
reloaded.messages = [cut.messages[0]];
await reloaded.resumeStream();
assert.equal(text(reloaded.messages[1]), text(whole.messages[1]));
const empty = new Chat("never", transport);
await empty.resumeStream();
assert.deepEqual([empty.status, empty.messages.length], ["ready", 0]);

// What is refused is an error that says why.
const bad = new Chat("bad", transport);
await bad.sendMessage({ text: "hello" }, { body: { temperature: 9 } });
assert.equal(bad.status, "error");
assert.match(bad.error.message, /temperature/);

transport.close();
console.log("ok");
